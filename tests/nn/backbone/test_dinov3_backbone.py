import copy
import logging
import socket

import pytest
import torch

from src.core import CheckpointError, ConfigError
from src.nn.backbone import DINOv3Backbone, dinov3_weights
from tests.fixtures.tiny import tiny_config
from tests.fixtures.vits import (
    GATED,
    PLAIN,
    WITH_BIASES,
    official_layout,
    small_backbone,
)

IMAGENET_MEAN, IMAGENET_STD = (
    torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1),
    torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1),
)


def seen_by(module, call):
    """Return the positional arguments that `module` got while `call` ran."""
    seen = []
    handle = module.register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments)
    )
    call()
    handle.remove()
    return seen[-1]


# ---- construction ----


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("dinov3_small", "vit_small_patch16_dinov3"),
        ("dinov3_small_plus", "vit_small_plus_patch16_dinov3"),
        ("dinov3_base", "vit_base_patch16_dinov3"),
        ("dinov3_large", "vit_large_patch16_dinov3"),
        (WITH_BIASES, WITH_BIASES),
    ],
)
def test_model_is_named_by_alias_or_as_timm_names_it(alias, name):
    assert small_backbone(alias).model_name == name


def test_small_plus_has_gated_feed_forward_layers():
    assert any(
        "fc1_g" in name
        for name in small_backbone("dinov3_small_plus").state_dict()
    )


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "vit_small_patch14_dinov2",
        "dinov3_huge",
        "convnext_tiny.dinov3_lvd1689m",
    ],
)
def test_a_name_that_is_not_a_dinov3_vit_is_refused_with_the_known_ones(name):
    with pytest.raises(ConfigError) as caught:
        DINOv3Backbone(name, pretrained=False)
    assert str(caught.value).startswith(
        f"DINOv3Backbone.model_name is '{name}', "
        "which timm does not know as a DINOv3 ViT; known are dinov3_small, "
    )
    assert PLAIN in str(caught.value)


@pytest.mark.parametrize(
    ("depth", "taps"),
    [
        (1, [0]),
        (2, [0, 1]),
        (3, [1, 2]),
        (4, [1, 2, 3]),
        (12, [5, 8, 11]),
        (24, [11, 17, 23]),
    ],
)
def test_three_blocks_are_tapped_evenly_up_to_the_last(depth, taps):
    assert small_backbone(depth=depth).tap_blocks == taps


@pytest.mark.parametrize("taps", [[], [1, 0], [0, 0], [-1], [2]])
def test_taps_that_do_not_exist_are_refused(taps):
    with pytest.raises(ConfigError) as caught:
        small_backbone(tap_blocks=taps)
    assert (
        str(caught.value)
        == f"DINOv3Backbone.tap_blocks is {taps}, expected ascending numbers from 0 to 1"
    )


@pytest.mark.parametrize(
    "settings",
    [{"num_heads": 0}, {"embed_dim": -4}, {"mlp_ratio": -1}],
    ids=str,
)
def test_sizes_that_timm_cannot_build_are_refused(settings):
    with pytest.raises(
        ConfigError,
        match=f"DINOv3Backbone: timm cannot build {PLAIN} with .*{next(iter(settings))}",
    ):
        small_backbone(**settings)


@pytest.mark.parametrize(
    ("embed_dim", "num_heads"), [(30, 4), (36, 2), (32, 3)]
)
def test_a_width_that_rotary_codes_cannot_take_is_refused(embed_dim, num_heads):
    with pytest.raises(
        ConfigError,
        match=f"DINOv3Backbone.embed_dim is {embed_dim}, "
        f"expected a multiple of 4 times num_heads {num_heads}: rotary",
    ):
        small_backbone(embed_dim=embed_dim, num_heads=num_heads)


def test_a_vit_without_blocks_is_refused():
    with pytest.raises(
        ConfigError, match="DINOv3Backbone.depth is 0, expected at least 1"
    ):
        small_backbone(depth=0)


def test_timms_own_arguments_are_passed_on():
    vit = small_backbone(
        embed_dim=48,
        depth=3,
        num_heads=3,
        mlp_ratio=2.0,
        num_reg_tokens=2,
        init_values=0.5,
    ).vit
    assert (
        vit.embed_dim,
        len(vit.blocks),
        vit.blocks[0].attn.num_heads,
        vit.blocks[0].mlp.fc1.out_features,
        vit.num_prefix_tokens,
    ) == (48, 3, 3, 96, 3)


def test_init_values_set_the_layer_scale():
    backbone = DINOv3Backbone(
        pretrained=False, embed_dim=32, depth=1, num_heads=2, init_values=0.5
    )
    assert torch.equal(backbone.vit.blocks[0].gamma_1, torch.full((32,), 0.5))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("embed_dims", "; did you mean 'embed_dim'?"),
        ("img_size", ""),
        ("frozen_backbone", "; did you mean 'freeze_backbone'?"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest_known_one(key, hint):
    with pytest.raises(ConfigError) as caught:
        tiny_config(DINOv3Backbone={key: 32})
    assert f"unknown key 'DINOv3Backbone.{key}' (command line){hint}" in str(
        caught.value
    )


def test_an_argument_of_a_wrong_type_is_refused():
    with pytest.raises(
        ConfigError,
        match="DINOv3Backbone.upsample_mode is 'bicubic', expected one of 'bilinear', 'nearest'",
    ):
        tiny_config(DINOv3Backbone={"upsample_mode": "bicubic"})


def test_channels_and_strides_are_attributes():
    backbone = small_backbone(out_channels=24, feat_strides=[16, 32])
    assert (backbone.out_channels, backbone.out_strides) == ([24, 24], [16, 32])


def test_normalisation_is_no_part_of_the_state_dict():
    assert not any(
        key.startswith("image_") for key in small_backbone().state_dict()
    )


# ---- forward ----


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (64, 96), (160, 32)])
def test_maps_fit_any_size_in_multiples_of_32(size):
    maps = small_backbone()(torch.rand(2, 3, *size))
    assert [tuple(x.shape) for x in maps] == [
        (2, 16, size[0] // s, size[1] // s) for s in (8, 16, 32)
    ]


@pytest.mark.parametrize("strides", [[8], [16], [32], [8, 32]])
def test_maps_have_the_requested_strides(strides):
    maps = small_backbone(feat_strides=strides)(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape[-2:]) for x in maps] == [
        (64 // s, 96 // s) for s in strides
    ]


def test_images_are_normalised_by_imagenet_statistics_inside():
    backbone, images = small_backbone().eval(), torch.rand(2, 3, 32, 64)
    (seen,) = seen_by(backbone.vit.patch_embed, lambda: backbone(images))
    torch.testing.assert_close(seen, (images - IMAGENET_MEAN) / IMAGENET_STD)


def test_maps_are_the_adapters_of_the_taps_of_the_normalised_image():
    backbone, images = small_backbone().eval(), torch.rand(2, 3, 32, 64)
    normalised = (images - IMAGENET_MEAN) / IMAGENET_STD
    taps = backbone.vit.forward_intermediates(
        normalised, indices=[0, 1], norm=True, intermediates_only=True
    )
    for ours, expected in zip(
        backbone(images), backbone.adapter(taps, normalised)
    ):
        torch.testing.assert_close(ours, expected)


def test_other_statistics_can_be_set():
    backbone, images = (
        small_backbone(
            image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25]
        ).eval(),
        torch.rand(1, 3, 32, 32),
    )
    (seen,) = seen_by(backbone.vit.patch_embed, lambda: backbone(images))
    torch.testing.assert_close(seen, images * 4 - 2)


def test_adapter_gets_the_patch_tokens_without_the_class_token_and_the_four_registers():
    backbone, images = small_backbone().eval(), torch.rand(1, 3, 32, 64)
    taps, normalised = seen_by(backbone.adapter, lambda: backbone(images))
    tokens = backbone.vit.forward_features(
        normalised
    )  # [1, 5 + 8, 32], after the final norm

    def as_map(first):
        """Return eight tokens as a map of 2 x 4, counted from `first`."""
        return tokens[:, first : first + 8].transpose(1, 2).reshape(1, 32, 2, 4)

    torch.testing.assert_close(taps[-1], as_map(5))
    assert not torch.allclose(taps[-1], as_map(4)) and not torch.allclose(
        taps[-1], as_map(1)
    )


@pytest.mark.parametrize("tap_norm", ["final", "own", "none"])
def test_taps_get_the_final_norm_only_if_asked_for(tap_norm):
    backbone, images = (
        small_backbone(tap_norm=tap_norm).eval(),
        torch.rand(1, 3, 32, 32),
    )
    taps, normalised = seen_by(backbone.adapter, lambda: backbone(images))
    expected = backbone.vit.forward_intermediates(
        normalised,
        indices=[0, 1],
        norm=tap_norm == "final",
        intermediates_only=True,
    )
    torch.testing.assert_close(taps[0], expected[0])
    assert (backbone.adapter.tap_norms is not None) == (tap_norm == "own")


def test_blocks_after_the_last_tap_are_not_in_the_model():
    deep, cut = (
        small_backbone(depth=2),
        small_backbone(depth=4, tap_blocks=[0, 1]),
    )
    assert list(cut.state_dict()) == list(deep.state_dict())
    cut.load_state_dict(deep.state_dict())
    images = torch.rand(1, 3, 32, 64)
    for ours, expected in zip(cut.eval()(images), deep.eval()(images)):
        assert torch.equal(ours, expected)


def test_unfrozen_blocks_are_counted_from_the_last_tap():
    cut = small_backbone(
        depth=4, tap_blocks=[0, 1], freeze_backbone_epochs=1, unfreeze_blocks=1
    )
    cut.set_epoch(1)
    assert trainable(cut) == ["1", "norm"]


@pytest.mark.parametrize(("depth", "last"), [(11, 10), (10, 9)])
def test_a_trunk_of_fewer_blocks_starts_from_weights_of_twelve(
    depth, last, tmp_path
):
    source = small_backbone(depth=12)
    path = tmp_path / "weights.pth"
    torch.save(official_layout(source.vit, live_biases=False), path)
    trunk = small_backbone(
        depth=depth,
        tap_blocks=[5, 8, last],
        pretrained=True,
        checkpoint_path=str(path),
    )
    trunk.load_pretrained()
    images = torch.rand(1, 3, 32, 64)
    taps = trunk.eval().taps_of(trunk.vit, images)
    expected = source.vit.eval().forward_intermediates(
        images, indices=[5, 8, last], norm=True, intermediates_only=True
    )
    for ours, theirs in zip(taps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_updates_of_lora_end_with_the_last_tap():
    cut = small_backbone(depth=4, tap_blocks=[0, 1], lora_rank=2)
    names = [name for name, p in cut.vit.named_parameters() if p.requires_grad]
    assert {name.split(".")[1] for name in names} == {"0", "1"}


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
def test_vit_stays_out_of_fp16_but_not_of_bf16(dtype, expected):
    backbone, seen = small_backbone().eval(), []
    backbone.vit.blocks[0].mlp.fc1.register_forward_hook(
        lambda _, __, output: seen.append(output.dtype)
    )
    with torch.autocast("cpu", dtype=dtype):
        backbone(torch.rand(1, 3, 32, 32))
    assert seen == [expected]


# ---- what is trained ----


def trainable(backbone):
    """Return the names of the ViT's trainable parts: blocks by number, the others by their first name."""
    names = {
        name.split(".")[1] if name.startswith("blocks.") else name.split(".")[0]
        for name, p in backbone.vit.named_parameters()
        if p.requires_grad
    }
    return sorted(names)


def test_everything_is_trained_by_default():
    backbone = small_backbone()
    assert all(p.requires_grad for p in backbone.parameters())


def test_frozen_backbone_stays_in_eval_mode_while_its_adapter_trains():
    backbone = small_backbone(freeze_backbone=True, drop_path=0.5).train()
    assert {m.training for m in backbone.vit.modules()} == {False}
    assert all(m.training for m in backbone.adapter.modules())


def test_frozen_backbone_gets_no_gradients_while_its_adapter_does():
    backbone = small_backbone(freeze_backbone=True).train()
    sum(x.sum() for x in backbone(torch.rand(2, 3, 64, 64))).backward()
    assert [
        name for name, p in backbone.named_parameters() if p.grad is not None
    ] == [name for name, _ in backbone.named_parameters() if "adapter" in name]


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (0, []),
        (1, ["3", "norm"]),
        (2, ["2", "3", "norm"]),
        (3, ["1", "2", "3", "norm"]),
        (
            4,
            [
                "0",
                "1",
                "2",
                "3",
                "cls_token",
                "norm",
                "patch_embed",
                "reg_token",
            ],
        ),
    ],
)
def test_the_last_blocks_can_be_trained_alone(count, parts):
    backbone = small_backbone(depth=4)
    backbone.set_trainable_blocks(count)
    assert trainable(backbone) == parts


def test_frozen_blocks_stay_in_eval_mode_beside_trained_ones():
    backbone = small_backbone(depth=4, drop_path=0.5)
    backbone.set_trainable_blocks(2)
    backbone.train()
    assert [block.training for block in backbone.vit.blocks] == [
        False,
        False,
        True,
        True,
    ]


def test_eval_mode_reaches_every_block():
    backbone = small_backbone(depth=4)
    backbone.set_trainable_blocks(2)
    assert {m.training for m in backbone.train().eval().modules()} == {False}


def test_frozen_blocks_can_thaw_later():
    backbone = small_backbone(freeze_backbone=True).train()
    backbone.set_trainable_blocks(2)
    assert all(p.requires_grad for p in backbone.parameters()) and all(
        m.training for m in backbone.modules()
    )


@pytest.mark.parametrize("count", [-1, 3])
def test_more_blocks_than_there_are_is_refused(count):
    with pytest.raises(ConfigError) as caught:
        small_backbone().set_trainable_blocks(count)
    assert (
        str(caught.value)
        == f"{count} trainable blocks were asked for, but {PLAIN} has 2"
    )


def test_blocks_after_the_last_tap_are_not_trained():
    assert trainable(small_backbone(depth=3, tap_blocks=[0, 1])) == [
        "0",
        "1",
        "cls_token",
        "norm",
        "patch_embed",
        "reg_token",
    ]


@pytest.mark.parametrize("tap_norm", ["own", "none"])
def test_final_norm_is_not_trained_where_it_is_not_used(tap_norm):
    assert "norm" not in trainable(small_backbone(tap_norm=tap_norm))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tap_norm": "own"},
        {"tap_norm": "none"},
        {"depth": 3, "tap_blocks": [0, 1]},
        {"model_name": WITH_BIASES},
        {"model_name": GATED},
        {"position_encoding": True},
        {"detail_channels": 0},
        {"feat_strides": [8]},
    ],
)
def test_every_trainable_parameter_gets_a_gradient(settings):
    backbone = small_backbone(**settings).train()
    sum(x.square().sum() for x in backbone(torch.rand(2, 3, 64, 64))).backward()
    assert [
        name
        for name, p in backbone.named_parameters()
        if p.requires_grad and p.grad is None
    ] == []


# ---- training options ----


def gradients(backbone, images):
    backbone.zero_grad()
    sum(x.square().sum() for x in backbone(images)).backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters()}


def test_gradient_checkpointing_gives_the_same_gradients():
    plain, saving, images = (
        small_backbone(),
        small_backbone(gradient_checkpointing=True),
        torch.rand(2, 3, 32, 64),
    )
    saving.load_state_dict(plain.state_dict())
    expected = gradients(plain.train(), images)
    for name, gradient in gradients(saving.train(), images).items():
        torch.testing.assert_close(
            gradient,
            expected[name],
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_gradient_checkpointing_computes_blocks_again_in_the_backward_pass():
    backbone, calls = small_backbone(gradient_checkpointing=True).train(), []
    backbone.vit.blocks[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    gradients(backbone, torch.rand(1, 3, 32, 32).repeat(2, 1, 1, 1))
    assert len(calls) == 2


def test_drop_path_grows_with_depth():
    blocks = small_backbone(depth=3, drop_path=0.4).vit.blocks
    assert [
        getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks
    ] == pytest.approx([0.0, 0.2, 0.4])


@pytest.mark.parametrize(
    "settings", [{"drop_path": 0.9}, {"rope_rescale_coords": 2.0}], ids=str
)
def test_random_parts_act_in_training(settings):
    backbone, images = (
        small_backbone(**settings).train(),
        torch.rand(4, 3, 64, 64),
    )
    assert not torch.equal(backbone(images)[1], backbone(images)[1])


@pytest.mark.parametrize(
    "settings", [{"drop_path": 0.9}, {"rope_rescale_coords": 2.0}], ids=str
)
def test_random_parts_do_not_act_in_evaluation(settings):
    plain, backbone, images = (
        small_backbone().eval(),
        small_backbone(**settings).eval(),
        torch.rand(4, 3, 64, 64),
    )
    backbone.load_state_dict(plain.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(plain(images), backbone(images))
    )


@pytest.mark.parametrize(
    "settings", [{"drop_path": 0.9}, {"rope_rescale_coords": 2.0}], ids=str
)
def test_random_parts_do_not_act_on_a_frozen_vit(settings):
    backbone, images = (
        small_backbone(freeze_backbone=True, **settings).train(),
        torch.rand(4, 3, 64, 64),
    )
    assert all(
        torch.equal(a, b) for a, b in zip(backbone(images), backbone(images))
    )


def test_nothing_is_random_by_default():
    backbone, images = small_backbone().train(), torch.rand(4, 3, 64, 64)
    assert all(
        torch.equal(a, b) for a, b in zip(backbone(images), backbone(images))
    )


# ---- weights ----


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No cache, and a socket that fails the test if anything tries to use it."""
    import huggingface_hub.constants

    def refuse(*arguments, **settings):
        raise AssertionError(f"a connection to {arguments} was tried")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache")
    )
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.chdir(tmp_path)


def test_without_a_file_and_without_a_network_one_line_says_what_to_do(
    no_network,
):
    with pytest.raises(CheckpointError) as caught:
        small_backbone(pretrained=True).load_pretrained()
    assert str(caught.value) == (
        "DINOv3 weights not found: there is no file "
        "weights/dinov3_vits16_pretrain_lvd1689m-08c60483.pth, "
        "and timm/vit_small_patch16_dinov3.lvd1689m is not in the local cache and "
        "https://huggingface.co cannot be reached (HF_HUB_OFFLINE is set). Put the official, "
        "timm or Hugging Face file of vit_small_patch16_dinov3 there, "
        "name another with -u DINOv3Backbone.checkpoint_path=FILE, or start without it: "
        "-u DINOv3Backbone.pretrained=False (weights/README.md says where the files are)"
    )


@pytest.mark.parametrize(
    ("model_name", "file"),
    [
        (
            "dinov3_small",
            "weights/dinov3_vits16_pretrain_lvd1689m-08c60483.pth",
        ),
        (WITH_BIASES, "weights/dinov3_vits16_pretrain_lvd1689m-08c60483.pth"),
        (
            "dinov3_small_plus",
            "weights/dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth",
        ),
        ("dinov3_base", "weights/dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth"),
        (
            "dinov3_large",
            "weights/dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth",
        ),
    ],
)
def test_the_file_that_is_looked_for_is_the_official_one_of_the_model(
    model_name, file, no_network
):
    with pytest.raises(CheckpointError, match=f"there is no file {file}, and"):
        small_backbone(model_name, pretrained=True).load_pretrained()


def test_missing_file_of_a_user_is_named(no_network, tmp_path):
    with pytest.raises(
        CheckpointError,
        match=rf"there is no file {tmp_path}/mine\.pth, and .*-u DINOv3Backbone\.pretrained=False",
    ):
        small_backbone(
            pretrained=True, checkpoint_path=str(tmp_path / "mine.pth")
        ).load_pretrained()


def test_an_address_is_not_fetched(no_network):
    with pytest.raises(
        CheckpointError,
        match="https://host/dinov3.pth is a URL; download the file yourself",
    ):
        small_backbone(
            pretrained=True, checkpoint_path="https://host/dinov3.pth"
        ).load_pretrained()


def test_nothing_is_read_without_pretrained(no_network):
    backbone = small_backbone(pretrained=False, checkpoint_path="nowhere.pth")
    before = backbone.vit.cls_token.clone()
    backbone.load_pretrained()
    assert torch.equal(backbone.vit.cls_token, before)


def test_a_file_is_loaded_and_reported(
    no_network, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("dfine"), "propagate", True)
    source, path = small_backbone(), tmp_path / "mine.pth"
    torch.save(official_layout(source.vit, live_biases=False), path)
    backbone = small_backbone(pretrained=True, checkpoint_path=str(path))
    with caplog.at_level(logging.INFO, "dfine"):
        backbone.load_pretrained()
    assert torch.equal(
        backbone.vit.blocks[1].mlp.fc1.weight,
        source.vit.blocks[1].mlp.fc1.weight,
    )
    assert (
        f"DINOv3: {path}: official layout, 32 of 32 tensors, sha256 "
        in caplog.text
    )


def test_building_from_a_configuration_loads_the_file(tmp_path):
    config = tiny_config()
    source, path = config.model.backbone.vit, tmp_path / "mine.pth"
    torch.save(official_layout(source, live_biases=False), path)
    loaded = tiny_config(
        DINOv3Backbone={"pretrained": True, "checkpoint_path": str(path)}
    ).model.backbone.vit
    assert torch.equal(
        loaded.patch_embed.proj.weight, source.patch_embed.proj.weight
    )


def test_weights_that_timm_publishes_are_taken_where_there_is_no_file(
    monkeypatch, tmp_path
):
    source, backbone = small_backbone(), small_backbone(pretrained=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        dinov3_weights,
        "timm_state_dict",
        lambda name: source.vit.state_dict() if name == PLAIN else {},
    )
    backbone.load_pretrained()
    assert torch.equal(backbone.vit.cls_token, source.vit.cls_token)


def test_weights_that_timm_publishes_for_another_size_are_refused(
    monkeypatch, tmp_path
):
    source, backbone = small_backbone(depth=1), small_backbone(pretrained=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        dinov3_weights, "timm_state_dict", lambda name: source.vit.state_dict()
    )
    with pytest.raises(CheckpointError) as caught:
        backbone.load_pretrained()
    assert (
        str(caught.value)
        == "what timm publishes is a DINOv3 ViT with width 32, 1 blocks, patch 16; "
        f"{PLAIN} has width 32, 2 blocks, patch 16"
    )


def test_later_blocks_that_timm_publishes_are_left_out_and_reported(
    monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr(logging.getLogger("dfine"), "propagate", True)
    source, backbone = small_backbone(depth=3), small_backbone(pretrained=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        dinov3_weights, "timm_state_dict", lambda name: source.vit.state_dict()
    )
    with caplog.at_level(logging.INFO, "dfine"):
        backbone.load_pretrained()
    assert torch.equal(
        backbone.vit.blocks[1].mlp.fc1.weight,
        source.vit.blocks[1].mlp.fc1.weight,
    )
    assert caplog.messages[-1].endswith(
        f"tensors that timm publishes for {PLAIN}; "
        "blocks 2 to 2 of its 3 (from 0) are left out: the model has 2"
    )


def test_taps_of_a_second_vit_are_read_as_the_backbone_reads_its_own():
    backbone, other, images = (
        small_backbone().eval(),
        small_backbone().eval(),
        torch.rand(1, 3, 32, 64),
    )
    expected, _ = seen_by(other.adapter, lambda: other(images))
    for ours, theirs in zip(
        backbone.taps_of(other.vit, (images - IMAGENET_MEAN) / IMAGENET_STD),
        expected,
    ):
        torch.testing.assert_close(ours, theirs)


# ---- compiling ----


def test_compiling_changes_neither_the_state_dict_nor_copies(monkeypatch):
    compiled = []

    def compile_only(function, **settings):
        compiled.append(settings)
        return function

    monkeypatch.setattr(torch, "compile", compile_only)
    backbone = small_backbone()
    before = list(backbone.state_dict())
    backbone.compile_for_training()
    assert compiled == [{"dynamic": True}] * len(backbone.vit.blocks)
    assert list(backbone.state_dict()) == before
    for block in copy.deepcopy(backbone).vit.blocks:
        assert block._compiled_call_impl is None


@pytest.mark.slow
def test_compiled_blocks_give_the_same_maps_for_all_sizes_and_phases():
    torch.manual_seed(0)
    backbone = small_backbone().train()
    compiled = copy.deepcopy(backbone)
    compiled.compile_for_training()
    for blocks in (0, 1):
        backbone.set_trainable_blocks(blocks)
        compiled.set_trainable_blocks(blocks)
        for size in ((64, 64), (96, 64), (128, 128)):
            images = torch.rand(2, 3, *size)
            expected = backbone(images)
            found = compiled(images)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            sum(level.square().mean() for level in expected).backward()
            sum(level.square().mean() for level in found).backward()
        for ours, theirs in zip(compiled.parameters(), backbone.parameters()):
            torch.testing.assert_close(
                ours.grad, theirs.grad, rtol=1e-3, atol=1e-6
            )
