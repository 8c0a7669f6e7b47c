import pytest
import torch
from torch import nn

from src.core import CheckpointError, ConfigError
from src.detection.fitting import load_strictly
from src.detection.lora_weights import merged_state_dict
from src.detection.weight_file import WeightFile
from src.nn.lora import LoRALinear, add_lora
from src.optim.ema import ModelEMA
from src.solver.finetune import load_for_tuning
from tests.fixtures.tiny import tiny_config
from tests.fixtures.vits import (
    GATED,
    PLAIN,
    WITH_BIASES,
    features,
    official_layout,
    small_backbone,
    timm_layout,
)

MODELS = pytest.mark.parametrize("model_name", [PLAIN, WITH_BIASES, GATED])
LORA = {"lora_rank": 4, "lora_alpha": 8.0}


def pair(model_name: str = PLAIN, **settings):
    """Return a plain backbone and one with LoRA and the same weights, in eval mode."""
    plain, adapted = (
        small_backbone(model_name),
        small_backbone(model_name, **(LORA | settings)),
    )
    adapted.load_state_dict(plain.state_dict())
    return plain.eval(), adapted.eval()


@torch.no_grad()
def changed(module: nn.Module):
    """Fill the factors with random values, as training would change them."""
    for layer in module.modules():
        if isinstance(layer, LoRALinear):
            layer.lora_up.normal_(std=0.1)
    return module


def factors(module: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: p for name, p in module.named_parameters() if ".lora_" in name
    }


def adapted_layers(vit: nn.Module) -> list[str]:
    """Return the names of adapted layers of the first block."""
    return [
        name
        for name, layer in vit.blocks[0].named_modules()
        if isinstance(layer, LoRALinear)
    ]


# ---- a layer ----


def test_a_layer_adds_the_scaled_product_of_its_factors():
    layer = LoRALinear(6, 5, rank=2, alpha=3.0)
    nn.init.normal_(layer.lora_up)
    x = torch.randn(7, 6)
    expected = (
        x @ (layer.weight + 1.5 * layer.lora_up @ layer.lora_down).T
        + layer.bias
    )
    torch.testing.assert_close(layer(x), expected)


def test_a_layer_shares_the_weights_of_the_linear_layer_it_stands_for():
    linear = nn.Linear(6, 5)
    layer = LoRALinear.from_linear(linear, 2, 2.0)
    assert layer.weight is linear.weight and layer.bias is linear.bias


def test_only_the_factors_of_a_layer_are_trained():
    layer = LoRALinear.from_linear(nn.Linear(6, 5), 2, 2.0)
    assert [
        name for name, p in layer.named_parameters() if p.requires_grad
    ] == [
        "lora_down",
        "lora_up",
    ]


def test_a_layer_without_bias_stays_so():
    assert (
        LoRALinear.from_linear(nn.Linear(6, 5, bias=False), 2, 2.0).bias is None
    )


def test_plain_weights_undo_the_change():
    layer, linear = (
        changed(LoRALinear(6, 5, rank=2, alpha=2.0)),
        nn.Linear(6, 5),
    )
    layer.load_state_dict(linear.state_dict())
    x = torch.randn(3, 6)
    assert torch.equal(layer(x), linear(x))


def test_weights_with_factors_bring_the_change_back():
    source, layer = (
        changed(LoRALinear(6, 5, rank=2, alpha=2.0)),
        LoRALinear(6, 5, rank=2, alpha=2.0),
    )
    layer.load_state_dict(source.state_dict())
    assert torch.equal(layer.lora_up, source.lora_up) and torch.equal(
        layer.lora_down, source.lora_down
    )


def test_a_single_factor_is_reported_as_a_missing_key():
    state = LoRALinear(6, 5, rank=2, alpha=2.0).state_dict()
    del state["lora_down"]
    with pytest.raises(RuntimeError, match='Missing key.*"lora_down"'):
        LoRALinear(6, 5, rank=2, alpha=2.0).load_state_dict(state)


def test_weights_of_other_layers_leave_the_change_alone():
    model = nn.Sequential(
        changed(LoRALinear(6, 5, rank=2, alpha=2.0)), nn.Linear(5, 5)
    )
    before = model[0].lora_up.clone()
    model.load_state_dict({"1.weight": torch.zeros(5, 5)}, strict=False)
    assert torch.equal(model[0].lora_up, before)


# ---- in a ViT ----


@pytest.mark.parametrize(
    ("model_name", "targets", "layers"),
    [
        (
            PLAIN,
            ["attention", "mlp"],
            ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"],
        ),
        (PLAIN, ["attention"], ["attn.qkv", "attn.proj"]),
        (PLAIN, ["mlp"], ["mlp.fc1", "mlp.fc2"]),
        (PLAIN, ["qkv", "fc2"], ["attn.qkv", "mlp.fc2"]),
        (PLAIN, ["attention", "proj"], ["attn.qkv", "attn.proj"]),
        (GATED, ["mlp"], ["mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"]),
        (GATED, ["fc1"], ["mlp.fc1_g", "mlp.fc1_x"]),
    ],
)
def test_targets_name_the_layers_that_are_adapted(model_name, targets, layers):
    assert (
        adapted_layers(
            small_backbone(model_name, lora_rank=2, lora_targets=targets).vit
        )
        == layers
    )


def test_separate_projections_are_adapted_like_a_fused_one():
    assert adapted_layers(
        small_backbone(lora_rank=2, lora_targets=["qkv"], qkv_fused=False).vit
    ) == [
        "attn.q_proj",
        "attn.k_proj",
        "attn.v_proj",
    ]


def test_a_backbone_has_no_lora_by_default():
    assert adapted_layers(small_backbone().vit) == []


@pytest.mark.parametrize("targets", [["attn"], [], ["mlp", "head"]])
def test_unknown_targets_are_refused_with_the_known_ones(targets):
    with pytest.raises(ConfigError) as caught:
        small_backbone(lora_rank=2, lora_targets=targets)
    assert (
        str(caught.value)
        == f"lora_targets is {targets}, expected some of attention, mlp, qkv, proj, fc1, fc2"
    )


@pytest.mark.parametrize("rank", [-1, 33])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(ConfigError) as caught:
        small_backbone(lora_rank=rank)
    assert (
        str(caught.value)
        == f"lora_rank is {rank}, expected 0 for no LoRA, or 1 to 32, "
        "the smallest width of the layers attention, mlp"
    )


def test_rank_zero_is_refused_where_lora_is_requested_explicitly():
    with pytest.raises(
        ConfigError, match="lora_rank is 0, expected 0 for no LoRA, or 1 to 32"
    ):
        add_lora(small_backbone().vit, 0, None, ["mlp"])


@pytest.mark.parametrize("alpha", [0, -1.0])
def test_an_alpha_that_is_not_positive_is_refused(alpha):
    with pytest.raises(
        ConfigError, match=f"lora_alpha is {alpha}, expected more than 0"
    ):
        small_backbone(lora_rank=2, lora_alpha=alpha)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (8.0, 2.0)])
def test_alpha_over_rank_scales_the_change_and_alpha_is_the_rank_by_default(
    alpha, scale
):
    assert (
        small_backbone(lora_rank=4, lora_alpha=alpha)
        .vit.blocks[0]
        .mlp.fc1.scale
        == scale
    )


@pytest.mark.parametrize("model_name", [PLAIN, GATED])
def test_a_fresh_change_leaves_features_as_they_are_bit_for_bit(model_name):
    plain, adapted = pair(model_name)
    images = torch.rand(2, 3, 32, 64)
    assert torch.equal(
        features(adapted.vit, images), features(plain.vit, images)
    )


def test_a_fresh_change_leaves_features_of_a_model_with_biases_as_they_are():
    plain, adapted = pair(WITH_BIASES)
    images = torch.rand(2, 3, 32, 64)
    # timm adds the bias after the product instead of within it, which rounds differently
    torch.testing.assert_close(
        features(adapted.vit, images),
        features(plain.vit, images),
        rtol=1e-5,
        atol=1e-5,
    )


@MODELS
def test_a_change_of_every_layer_reaches_the_features(model_name):
    _, adapted = pair(model_name)
    images = torch.rand(1, 3, 32, 32)
    before = features(adapted.vit, images)
    for name, layer in adapted.vit.named_modules():
        if isinstance(layer, LoRALinear):
            torch.nn.init.normal_(layer.lora_up)
            assert not torch.allclose(features(adapted.vit, images), before), (
                name
            )
            torch.nn.init.zeros_(layer.lora_up)


# ---- training ----


@MODELS
def test_gradients_reach_both_factors_of_every_layer(model_name):
    backbone = changed(small_backbone(model_name, **LORA)).train()
    sum(x.square().sum() for x in backbone(torch.rand(2, 3, 64, 64))).backward()
    assert [
        name
        for name, p in factors(backbone).items()
        if p.grad is None or not p.grad.any()
    ] == []


@MODELS
def test_gradients_reach_the_factors_through_gradient_checkpointing(model_name):
    backbone = changed(
        small_backbone(model_name, gradient_checkpointing=True, **LORA)
    ).train()
    sum(x.square().sum() for x in backbone(torch.rand(2, 3, 64, 64))).backward()
    assert [
        name
        for name, p in factors(backbone).items()
        if p.grad is None or not p.grad.any()
    ] == []


@MODELS
def test_a_step_moves_the_factors_and_nothing_else_of_the_vit(model_name):
    backbone = small_backbone(model_name, **LORA).train()
    changed(
        backbone
    )  # at the start, when lora_up is zero, lora_down has no gradient yet
    before = {
        name: p.detach().clone() for name, p in backbone.vit.named_parameters()
    }
    optimizer = torch.optim.SGD(
        [p for p in backbone.parameters() if p.requires_grad], lr=1e-3
    )
    sum(x.square().sum() for x in backbone(torch.rand(2, 3, 64, 64))).backward()
    optimizer.step()
    assert {
        name
        for name, p in backbone.vit.named_parameters()
        if not torch.equal(p, before[name])
    } == set(factors(backbone.vit))


@pytest.mark.parametrize(
    ("count", "blocks"),
    [(0, []), (1, ["3"]), (2, ["2", "3"]), (4, ["0", "1", "2", "3"])],
)
def test_the_factors_of_the_last_blocks_can_be_trained_alone(count, blocks):
    backbone = small_backbone(depth=4, **LORA)
    backbone.set_trainable_blocks(count)
    trained = [
        name for name, p in backbone.vit.named_parameters() if p.requires_grad
    ]
    assert (
        set(trained) <= set(factors(backbone.vit))
        and sorted({name.split(".")[1] for name in trained}) == blocks
    )


def test_factors_of_blocks_after_the_last_tap_are_not_trained():
    backbone = small_backbone(depth=3, tap_blocks=[0, 1], **LORA)
    assert {
        name.split(".")[1]
        for name, p in backbone.vit.named_parameters()
        if p.requires_grad
    } == {
        "0",
        "1",
    }


def test_the_adapter_of_a_backbone_with_lora_is_trained():
    assert all(
        p.requires_grad for p in small_backbone(**LORA).adapter.parameters()
    )


def test_trained_numbers_are_rank_times_both_widths_of_each_layer():
    width, hidden, rank, depth = 32, 128, 4, 2
    trained = sum(
        p.numel()
        for p in small_backbone(lora_rank=rank).vit.parameters()
        if p.requires_grad
    )
    assert trained == depth * rank * (
        (width + 3 * width) + (width + width) + 2 * (width + hidden)
    )


def test_the_average_follows_the_factors():
    backbone = small_backbone(**LORA)
    backbone.load_state_dict(
        merged_state_dict(backbone)
    )  # lora_up is zero from here on
    ema = ModelEMA(backbone, decay=0.5, warmups=0)
    changed(backbone)
    ema.update(backbone)
    torch.testing.assert_close(
        ema.module.vit.blocks[0].attn.qkv.lora_up,
        backbone.vit.blocks[0].attn.qkv.lora_up / 2,
    )


# ---- folding in ----


@MODELS
def test_merged_weights_have_the_keys_and_shapes_of_the_plain_model(model_name):
    plain, adapted = pair(model_name)
    shapes = [
        {key: value.shape for key, value in state.items()}
        for state in (merged_state_dict(changed(adapted)), plain.state_dict())
    ]
    assert shapes[0] == shapes[1]


@MODELS
def test_merged_weights_give_a_plain_model_the_same_features(model_name):
    plain, adapted = pair(model_name)
    images = torch.rand(2, 3, 32, 64)
    expected = features(changed(adapted).vit, images)
    plain.load_state_dict(merged_state_dict(adapted))
    # float32 rounding: W x + s B (A x) against (W + s B A) x, with features of order one
    torch.testing.assert_close(
        features(plain.vit, images), expected, rtol=1e-5, atol=1e-5
    )


def test_merging_leaves_the_module_as_it_is():
    _, adapted = pair()
    before = {
        key: value.clone()
        for key, value in changed(adapted).state_dict().items()
    }
    merged_state_dict(adapted)
    assert all(
        torch.equal(value, before[key])
        for key, value in adapted.state_dict().items()
    )


def test_merged_state_of_a_single_layer_is_that_of_a_linear_one():
    assert list(merged_state_dict(LoRALinear(6, 5, rank=2, alpha=2.0))) == [
        "weight",
        "bias",
    ]


def test_merged_state_of_a_layer_in_two_places_has_both():
    layer = LoRALinear(6, 6, rank=2, alpha=2.0)
    assert list(merged_state_dict(nn.Sequential(layer, layer))) == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
    ]


def test_merged_state_without_lora_is_the_state():
    model = nn.Linear(3, 2)
    assert all(
        torch.equal(value, model.state_dict()[key])
        for key, value in merged_state_dict(model).items()
    )


def test_a_deployed_layer_is_a_plain_linear_one():
    layer = LoRALinear(6, 5, rank=2, alpha=2.0)
    layer.convert_to_deploy()
    assert type(layer) is nn.Linear and list(layer.state_dict()) == [
        "weight",
        "bias",
    ]


@MODELS
def test_a_deployed_detector_detects_the_same_without_lora(model_name):
    model = tiny_config(
        DINOv3Backbone={"model_name": model_name, **LORA}
    ).model.eval()
    changed(model)
    images = torch.rand(1, 3, 64, 64)
    deployed = model.deploy()
    assert not any(
        isinstance(layer, LoRALinear) for layer in deployed.modules()
    ) and factors(model)
    with torch.inference_mode():
        # convolutions and norms are fused too, hence looser than for LoRA alone
        torch.testing.assert_close(
            deployed.backbone(images),
            model.backbone(images),
            rtol=1e-4,
            atol=1e-5,
        )


# ---- weights ----


@pytest.mark.parametrize(
    "layout", [timm_layout, official_layout], ids=["timm", "official"]
)
@MODELS
def test_published_weights_load_and_undo_the_change(
    model_name, layout, tmp_path
):
    plain, path = small_backbone(model_name), tmp_path / "dinov3.pth"
    torch.save(
        layout(plain.vit)
        if layout is timm_layout
        else layout(plain.vit, live_biases=model_name == WITH_BIASES),
        path,
    )
    backbone = changed(
        small_backbone(
            model_name, pretrained=True, checkpoint_path=str(path), **LORA
        )
    )
    backbone.load_pretrained()
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(
        features(backbone.vit, images),
        features(plain.vit, images),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.fixture
def detectors():
    """A plain detector, and one with LoRA that was trained from its weights."""
    plain, adapted = (
        tiny_config(DINOv3Backbone=settings).model.eval()
        for settings in ({}, LORA)
    )
    adapted.load_state_dict(plain.state_dict())
    return plain, changed(adapted)


def saved(weights, tmp_path) -> WeightFile:
    return WeightFile(
        tmp_path / "best.pth",
        {key: value.clone() for key, value in weights.items()},
        {},
    )


def load_with_t(model, file):
    load_for_tuning(model, file, None)


LOADERS = pytest.mark.parametrize(
    "load", [load_strictly, load_with_t], ids=["-r", "-t"]
)


@LOADERS
def test_a_plain_checkpoint_loads_into_a_model_with_lora_as_no_change(
    load, detectors, tmp_path
):
    plain, adapted = detectors
    load(adapted, saved(plain.state_dict(), tmp_path))
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(
            adapted(images)["pred_boxes"], plain(images)["pred_boxes"]
        )


@LOADERS
@pytest.mark.parametrize("settings", [{}, LORA], ids=["plain", "LoRA"])
def test_a_merged_checkpoint_loads_into_both_kinds_of_model(
    load, settings, detectors, tmp_path
):
    _, adapted = detectors
    model = tiny_config(DINOv3Backbone=settings).model.eval()
    load(model, saved(merged_state_dict(adapted), tmp_path))
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(
            model.backbone(images),
            adapted.backbone(images),
            rtol=1e-4,
            atol=1e-5,
        )


@LOADERS
def test_a_checkpoint_with_factors_loads_into_a_model_with_lora(
    load, detectors, tmp_path
):
    _, adapted = detectors
    model = tiny_config(DINOv3Backbone=LORA).model
    load(model, saved(adapted.state_dict(), tmp_path))
    assert all(
        torch.equal(p, factors(adapted)[name])
        for name, p in factors(model).items()
    )


@LOADERS
def test_a_checkpoint_with_factors_is_refused_by_a_model_without_lora(
    load, detectors, tmp_path
):
    plain, adapted = detectors
    file = saved(adapted.state_dict(), tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load(plain, file)
    assert str(caught.value) == (
        f"{file.path} is the state of a run with LoRA (16 factors of rank 4), "
        "but this model has no LoRA; use that run's best.pth, whose weights are merged, "
        "or set DINOv3Backbone.lora_rank=4"
    )


@LOADERS
def test_a_checkpoint_of_other_layers_is_refused(load, detectors, tmp_path):
    model = tiny_config(DINOv3Backbone={**LORA, "lora_targets": ["mlp"]}).model
    with pytest.raises(
        CheckpointError,
        match=r"8 unexpected \(backbone\.vit\.blocks\.0\.attn\.qkv\.lora_down, ",
    ):
        load(model, saved(detectors[1].state_dict(), tmp_path))
