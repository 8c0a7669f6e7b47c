import pytest
import torch
from safetensors.torch import save_file

from src.core import CheckpointError, ConfigError
from src.nn.backbone.dinov3_weights import licence_of, load_dinov3_weights
from src.runtime.weight_files import file_sha256
from tests.fixtures.vits import (
    GATED,
    PLAIN,
    WITH_BIASES,
    deimv2_layout,
    features,
    hugging_face_layout,
    official_layout,
    small_backbone,
    timm_layout,
)

LAYOUTS = {
    "official": official_layout,
    "timm": timm_layout,
    "Hugging Face": hugging_face_layout,
}


def write(path, state):
    """Write a state dict as .pth or .safetensors, and return the path."""
    if path.suffix == ".safetensors":
        save_file(
            {key: value.contiguous() for key, value in state.items()}, path
        )
    else:
        torch.save(state, path)
    return path


def refusal(state, folder, model_name=PLAIN, name="weights.pth", **settings):
    """Return the message with which a file is refused, with its path cut to the name."""
    path = write(folder / name, state)
    with pytest.raises(CheckpointError) as caught:
        load_dinov3_weights(
            small_backbone(model_name, **settings).vit, path, model_name
        )
    return str(caught.value).replace(str(folder) + "/", "")


def test_file_of_the_given_digest_loads_and_an_invalid_digest_is_refused(
    tmp_path,
):
    vit = small_backbone(PLAIN).vit
    path = write(tmp_path / "weights.pth", timm_layout(vit))
    load_dinov3_weights(vit, path, PLAIN, file_sha256(path).upper())
    with pytest.raises(
        ConfigError,
        match="^checkpoint_sha256 is 'abc', expected 64 hexadecimal digits, or the first 8 or more of them$",
    ):
        load_dinov3_weights(vit, path, PLAIN, "abc")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model_name", [PLAIN, WITH_BIASES, GATED])
def test_file_of_any_layout_gives_the_features_of_the_model_it_came_from(
    model_name, layout, suffix, tmp_path
):
    source, vit, images = (
        small_backbone(model_name).vit,
        small_backbone(model_name).vit,
        torch.rand(1, 3, 48, 80),
    )
    state = LAYOUTS[layout](source)
    load_dinov3_weights(
        vit, write(tmp_path / f"weights{suffix}", state), model_name
    )
    torch.testing.assert_close(
        features(vit, images), features(source, images), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    "prefix",
    ["layer.", "model.layer.", "encoder.layer.", "model.encoder.layer."],
)
def test_hugging_face_files_of_every_age_load(prefix, tmp_path):
    source, vit = small_backbone().vit, small_backbone().vit
    report = load_dinov3_weights(
        vit,
        write(tmp_path / "weights.pth", hugging_face_layout(source, prefix)),
        PLAIN,
    )
    assert report.layout == "Hugging Face"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s},
        lambda s: {"state_dict": s},
        lambda s: {"teacher": {"module." + k: v for k, v in s.items()}},
        lambda s: {"teacher": {"backbone." + k: v for k, v in s.items()}},
    ],
)
def test_state_dicts_inside_a_checkpoint_of_a_training_load(wrap, tmp_path):
    source, vit = small_backbone().vit, small_backbone().vit
    load_dinov3_weights(
        vit,
        write(tmp_path / "weights.pth", wrap(official_layout(source))),
        PLAIN,
    )
    assert torch.equal(vit.cls_token, source.cls_token)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_report_names_layout_counts_and_digest(layout, tmp_path):
    vit = small_backbone().vit
    path = write(tmp_path / "weights.pth", LAYOUTS[layout](vit))
    report = load_dinov3_weights(vit, path, PLAIN)
    count = len(vit.state_dict())
    assert (
        str(report)
        == f"{path}: {layout} layout, {count} of {count} tensors, sha256 {file_sha256(path)[:8]}"
    )


# ---- query, key and value biases ----


def test_biases_of_an_official_file_are_multiplied_by_their_mask(tmp_path):
    vit, state = (
        small_backbone(WITH_BIASES).vit,
        official_layout(small_backbone(WITH_BIASES).vit),
    )
    state["blocks.0.attn.qkv.bias_mask"] *= 0.5
    load_dinov3_weights(
        vit, write(tmp_path / "weights.pth", state), WITH_BIASES
    )
    fused = state["blocks.0.attn.qkv.bias"]
    torch.testing.assert_close(
        torch.cat([vit.blocks[0].attn.q_bias, vit.blocks[0].attn.v_bias]),
        0.5 * torch.cat([fused[:32], fused[64:]]),
    )


def test_mask_of_zero_takes_a_bias_out_even_if_it_is_not_a_number(tmp_path):
    vit, state = (
        small_backbone(WITH_BIASES).vit,
        official_layout(small_backbone(WITH_BIASES).vit),
    )
    state["blocks.0.attn.qkv.bias"][32:64] = (
        torch.nan
    )  # older training code left NaN where the mask is zero
    load_dinov3_weights(
        vit, write(tmp_path / "weights.pth", state), WITH_BIASES
    )
    assert features(vit, torch.rand(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_live_biases_are_refused_by_a_plain_model_with_the_name_of_the_other(
    layout, tmp_path
):
    message = refusal(
        LAYOUTS[layout](small_backbone(WITH_BIASES).vit), tmp_path
    )
    assert message == (
        "weights.pth has query and value biases that are not zero (4 tensors), "
        f"for which {PLAIN} has no place; set DINOv3Backbone.model_name to {PLAIN}_qkvb"
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_file_without_biases_loads_zeros_where_the_model_has_them_and_the_report_lists_them(
    layout, tmp_path
):
    source, vit = small_backbone(PLAIN).vit, small_backbone(WITH_BIASES).vit
    report = load_dinov3_weights(
        vit,
        write(tmp_path / "weights.pth", LAYOUTS[layout](source)),
        WITH_BIASES,
    )
    assert report.remarks == ("its query and value biases are zero",)
    assert all(
        not block.attn.q_bias.any() and not block.attn.v_bias.any()
        for block in vit.blocks
    )


def test_dead_biases_of_a_published_file_load_into_a_plain_model(tmp_path):
    source, vit, images = (
        small_backbone(WITH_BIASES).vit,
        small_backbone(PLAIN).vit,
        torch.rand(1, 3, 32, 32),
    )
    load_dinov3_weights(
        vit,
        write(
            tmp_path / "weights.pth", official_layout(source, live_biases=False)
        ),
        PLAIN,
    )
    for block in source.blocks:
        block.attn.q_bias.data.zero_()
        block.attn.v_bias.data.zero_()
    torch.testing.assert_close(
        features(vit, images), features(source, images), rtol=0, atol=1e-6
    )


def test_key_bias_that_is_not_zero_is_refused(tmp_path):
    state = hugging_face_layout(small_backbone(WITH_BIASES).vit)
    state["model.layer.1.attention.k_proj.bias"] = torch.ones(32)
    assert refusal(state, tmp_path, WITH_BIASES) == (
        "weights.pth has a key bias that is not zero (blocks.1.attn.k_bias); "
        "DINOv3 has none, so this is another model"
    )


# ---- files that do not fit ----


def test_missing_file_is_reported_with_the_working_directory(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"nowhere\.pth does not exist \(looked from "
    ):
        load_dinov3_weights(
            small_backbone().vit, tmp_path / "nowhere.pth", PLAIN
        )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file_is_refused_with_its_size(suffix, tmp_path):
    path = write(
        tmp_path / f"weights{suffix}", official_layout(small_backbone().vit)
    )
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(
        CheckpointError, match=rf"weights{suffix} \(20000 bytes\) is damaged"
    ):
        load_dinov3_weights(small_backbone().vit, path, PLAIN)


def test_a_digest_that_differs_from_the_name_is_refused(tmp_path):
    state = official_layout(small_backbone().vit)
    message = refusal(state, tmp_path, name="dinov3_vits16-08c60483.pth")
    digest = file_sha256(tmp_path / "dinov3_vits16-08c60483.pth")[:8]
    assert (
        message
        == "dinov3_vits16-08c60483.pth is damaged or not what its name says: "
        f"its sha256 begins with {digest}, expected 08c60483; download it again"
    )


def test_digest_that_agrees_with_the_name_is_remarked(tmp_path):
    path = write(
        tmp_path / "weights.pth",
        official_layout(small_backbone().vit, live_biases=False),
    )
    path = path.rename(tmp_path / f"weights-{file_sha256(path)[:8]}.pth")
    assert load_dinov3_weights(small_backbone().vit, path, PLAIN).remarks == (
        "as its name says",
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"embed_dim": 48}, "width 48, 2 blocks, patch 16"),
        ({"depth": 1}, "width 32, 1 blocks, patch 16"),
        ({"depth": 3, "embed_dim": 48}, "width 48, 2 blocks, patch 16"),
    ],
)
def test_another_size_is_refused_with_both_sizes(
    settings, size, layout, tmp_path
):
    message = refusal(LAYOUTS[layout](small_backbone(**settings).vit), tmp_path)
    assert (
        message
        == f"weights.pth is a DINOv3 ViT with {size}; {PLAIN} has width 32, 2 blocks, patch 16"
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model_name", [PLAIN, WITH_BIASES, GATED])
def test_blocks_of_a_file_behind_the_last_of_the_model_are_left_out_and_reported(
    model_name, layout, tmp_path
):
    source = small_backbone(model_name, depth=4).vit
    path = write(tmp_path / "weights.pth", LAYOUTS[layout](source))
    model = small_backbone(model_name).vit
    report = load_dinov3_weights(model, path, model_name)
    assert report.loaded == report.expected == len(model.state_dict())
    assert (
        "blocks 2 to 3 of its 4 (from 0) are left out: the model has 2"
        in report.remarks
    )
    images = torch.rand(1, 3, 32, 64)
    cut = source.eval().forward_intermediates(
        images, indices=[1], norm=True, intermediates_only=True
    )
    torch.testing.assert_close(features(model, images), cut[0])


def test_biases_of_blocks_that_are_left_out_do_not_matter(tmp_path):
    source = small_backbone(WITH_BIASES, depth=3).vit
    with torch.no_grad():
        for block in source.blocks[:2]:
            block.attn.q_bias.zero_()
            block.attn.v_bias.zero_()
    path = write(tmp_path / "weights.pth", timm_layout(source))
    model = small_backbone(PLAIN).vit
    load_dinov3_weights(model, path, PLAIN)
    assert torch.equal(
        model.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight
    )


def test_gated_file_for_an_ungated_model_is_refused_with_both_sizes(tmp_path):
    assert refusal(official_layout(small_backbone(GATED).vit), tmp_path) == (
        "weights.pth is a DINOv3 ViT with width 32, 2 blocks, patch 16, SwiGLU; "
        f"{PLAIN} has width 32, 2 blocks, patch 16"
    )


def test_a_missing_tensor_is_named(tmp_path):
    state = official_layout(small_backbone().vit, live_biases=False)
    del state["blocks.1.norm2.weight"]
    assert (
        refusal(state, tmp_path)
        == f"weights.pth does not fit {PLAIN}: 1 missing (first blocks.1.norm2.weight)"
    )


def test_unexpected_and_reshaped_tensors_are_named(tmp_path):
    state = official_layout(small_backbone().vit, live_biases=False) | {
        "head.weight": torch.zeros(2, 32),
        "norm.bias": torch.zeros(31),
    }
    assert (
        refusal(state, tmp_path)
        == f"weights.pth does not fit {PLAIN}: 1 unexpected (first head.weight), "
        "1 of another shape (first norm.bias)"
    )


def test_third_of_a_hugging_face_projection_that_is_missing_is_named(tmp_path):
    state = hugging_face_layout(small_backbone().vit)
    del state["model.layer.0.attention.k_proj.weight"]
    assert (
        refusal(state, tmp_path)
        == f"weights.pth does not fit {PLAIN}: 1 missing (first blocks.0.attn.qkv.weight)"
    )


@pytest.mark.parametrize(
    ("state", "description"),
    [
        (
            {
                "cls_token": torch.zeros(1, 1, 384),
                "pos_embed": torch.zeros(1, 1370, 384),
                "patch_embed.proj.weight": torch.zeros(384, 3, 14, 14),
            },
            "DINOv2 ViT-S/14",
        ),
        (
            {
                "cls_token": torch.zeros(1, 1, 768),
                "pos_embed": torch.zeros(1, 1370, 768),
                "register_tokens": torch.zeros(1, 4, 768),
                "patch_embed.proj.weight": torch.zeros(768, 3, 14, 14),
            },
            "DINOv2 ViT-B/14",
        ),
        (
            {
                "cls_token": torch.zeros(1, 1, 384),
                "pos_embed": torch.zeros(1, 1369, 384),
                "reg_token": torch.zeros(1, 4, 384),
                "patch_embed.proj.weight": torch.zeros(384, 3, 14, 14),
            },
            "DINOv2 ViT-S/14",
        ),
        (
            {
                "embeddings.cls_token": torch.zeros(1, 1, 384),
                "embeddings.position_embeddings": torch.zeros(1, 1370, 384),
                "embeddings.register_tokens": torch.zeros(1, 4, 384),
                "embeddings.patch_embeddings.projection.weight": torch.zeros(
                    384, 3, 14, 14
                ),
            },
            "DINOv2 ViT-S/14",
        ),
        (
            {
                "pos_embed": torch.zeros(1, 197, 768),
                "patch_embed.proj.weight": torch.zeros(768, 3, 16, 16),
            },
            "a ViT-B/16 with absolute position embeddings (not DINOv3)",
        ),
        (
            {
                "downsample_layers.0.0.weight": torch.zeros(96, 3, 4, 4),
                "stages.0.0.gamma": torch.zeros(96),
            },
            "a convolutional network (ConvNeXt or HGNetv2)",
        ),
        (
            {
                "model": {
                    "backbone.stages.0.blocks.0.layers.0.conv.weight": torch.zeros(
                        1
                    ),
                    "decoder.up": torch.zeros(1),
                }
            },
            "a detector's checkpoint (use -r or -t for those)",
        ),
        (
            {
                "model": {
                    "backbone.vit.patch_embed.proj.weight": torch.zeros(
                        32, 3, 16, 16
                    ),
                    "decoder.up": torch.zeros(1),
                }
            },
            "a detector's checkpoint (use -r or -t for those)",
        ),
        (
            {
                "ema": {
                    "module": {
                        "backbone.vit.cls_token": torch.zeros(1),
                        "decoder.up": torch.zeros(1),
                    }
                }
            },
            "a detector's checkpoint (use -r or -t for those)",
        ),
        (
            {"fc.weight": torch.zeros(3, 4)},
            "not a DINOv3 ViT (1 tensor, first fc.weight)",
        ),
    ],
    ids=[
        "DINOv2",
        "DINOv2 with registers",
        "timm's DINOv2",
        "Hugging Face's DINOv2",
        "ViT",
        "ConvNeXt",
        "HGNetv2 detector",
        "DINOv3 detector",
        "average",
        "anything else",
    ],
)
def test_a_file_of_another_model_is_refused_with_its_description(
    state, description, tmp_path
):
    assert (
        refusal(state, tmp_path)
        == f"weights.pth is {description}; {PLAIN} needs a DINOv3 ViT of its size"
    )


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"epoch": 3}, {0: torch.zeros(2)}], ids=str
)
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    assert (
        refusal(content, tmp_path)
        == "weights.pth is not a state dict (names to tensors)"
    )


# ---- DEIMv2's small ViTs ----

TINY = {"embed_dim": 64, "num_heads": 1, "rope_periods": "stored"}


def test_file_of_a_small_deimv2_vit_gives_the_features_of_the_model_it_came_from(
    tmp_path,
):
    source = small_backbone("deimv2_tiny", **TINY)
    with torch.no_grad():
        source.vit.rope.periods.mul_(1.1)
    path = write(tmp_path / "vitt_distill.pt", deimv2_layout(source.vit))
    model = small_backbone("deimv2_tiny", **TINY)
    report = load_dinov3_weights(model.vit, path, "deimv2_tiny")
    assert report.layout == "DEIMv2" and report.loaded == report.expected
    images = torch.rand(1, 3, 32, 64)
    ours = features(model.vit, images)
    assert torch.equal(ours, features(source.vit, images))


def test_file_of_a_small_deimv2_vit_loads_into_fewer_blocks(tmp_path):
    source = small_backbone("deimv2_tiny", depth=4, **TINY)
    path = write(tmp_path / "vitt_distill.pt", deimv2_layout(source.vit))
    model = small_backbone("deimv2_tiny", depth=3, **TINY)
    report = load_dinov3_weights(model.vit, path, "deimv2_tiny")
    assert "blocks 3 to 3 of its 4" in str(report)
    assert torch.equal(
        model.vit.blocks[2].attn.qkv.weight,
        source.vit.blocks[2].attn.qkv.weight,
    )


def test_periods_of_a_meta_file_are_loaded_where_the_model_stores_them(
    tmp_path,
):
    model = small_backbone(PLAIN, rope_periods="stored")
    state = official_layout(small_backbone(PLAIN).vit)
    path = write(tmp_path / "weights.pth", state)
    load_dinov3_weights(model.vit, path, PLAIN)
    assert torch.equal(model.vit.rope.periods, state["rope_embed.periods"])


def test_a_file_without_periods_leaves_the_computed_ones(tmp_path):
    model = small_backbone(PLAIN, rope_periods="stored")
    periods = model.vit.rope.periods.clone()
    path = write(tmp_path / "w.pth", timm_layout(small_backbone(PLAIN).vit))
    load_dinov3_weights(model.vit, path, PLAIN)
    assert torch.equal(model.vit.rope.periods, periods)


def test_licence_of_a_small_deimv2_vit_names_both_licences():
    note = licence_of("deimv2_tiny")
    assert "Apache-2.0" in note and "DINOv3 License" in note
