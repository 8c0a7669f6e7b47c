import copy
import logging

import pytest
import torch
from torch import Tensor, nn

from src.core import ConfigError
from src.nn.backbone import DINOv3Backbone
from src.nn.backbone.windowed_vit import WindowGrid, windowed_taps
from tests.fixtures.vits import (
    GATED,
    PLAIN,
    WITH_BIASES,
    official_layout,
    randomize,
    small_backbone,
)

MODELS = [PLAIN, WITH_BIASES, GATED, "deimv2_tiny"]


def backbone_of_four(model_name: str = PLAIN, **settings) -> DINOv3Backbone:
    """Return a backbone with four blocks, of which 1 and 3 are tapped, in eval mode."""
    if model_name == "deimv2_tiny":
        settings["tap_norm"] = "none"  # it has no final norm
    return small_backbone(
        model_name, **({"depth": 4, "tap_blocks": [1, 3]} | settings)
    ).eval()


def pair(**settings) -> tuple[DINOv3Backbone, DINOv3Backbone]:
    """Return a global backbone and one with 2 x 2 windows and the same weights."""
    plain = backbone_of_four(**settings)
    windowed = backbone_of_four(windows=2, **settings)
    windowed.load_state_dict(plain.state_dict())
    return plain, windowed


def taps_with(
    backbone: DINOv3Backbone,
    images: Tensor,
    windows: int,
    window_blocks: tuple[int, ...] = (0, 2),
) -> list[Tensor]:
    """Return the taps of windowed attention."""
    return windowed_taps(
        backbone.vit,
        images,
        backbone.tap_blocks,
        windows=windows,
        window_blocks=window_blocks,
        norm=backbone.tap_norm == "final",
    )


def gradients_of(backbone: DINOv3Backbone, images: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a loss on the maps."""
    backbone.zero_grad()
    sum(x.square().sum() for x in backbone(images)).backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters()}


# ---- a naive reference: attention over all tokens of an image, with masks ----


def masked_attention(
    attention: nn.Module, x: Tensor, codes: Tensor, allowed: Tensor
) -> Tensor:
    """Return the attention of tokens `[B, N, D]`, of which i sees j where `allowed[i, j]`."""
    qkv = attention.qkv(x)
    if getattr(attention, "q_bias", None) is not None:
        zero = torch.zeros_like(attention.q_bias)
        qkv = qkv + torch.cat([attention.q_bias, zero, attention.v_bias])
    shape = (*x.shape[:2], attention.num_heads, -1)
    query, key, value = (
        part.reshape(shape).transpose(1, 2) for part in qkv.chunk(3, -1)
    )
    sine, cosine = codes.chunk(2, -1)
    query, key = (part * cosine + turned(part) * sine for part in (query, key))
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    shares = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return attention.proj((shares @ value).transpose(1, 2).flatten(2))


def turned(x: Tensor) -> Tensor:
    """Return the halves (a, b) of the channels as (-b, a)."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def scaled(gamma: Tensor | None, x: Tensor) -> Tensor:
    return x if gamma is None else gamma * x


def reference_taps(
    backbone: DINOv3Backbone,
    images: Tensor,
    windows: tuple[int, int],
    window_blocks: tuple[int, ...],
) -> list[Tensor]:
    """Return the taps with (rows, columns) of windows; all tokens stay in one sequence per image.

    The sequence begins with the class and register tokens, one copy for each window while there are windows.
    """
    vit = backbone.vit
    patches = vit.patch_embed(images)  # [B, h, w, D]
    batch, height, width, dim = patches.shape
    rows, columns = windows
    of_row = torch.arange(height) // (height // rows)
    of_column = torch.arange(width) // (width // columns)
    of_patch = (of_row[:, None] * columns + of_column).flatten()
    patches = patches.flatten(1, 2)
    prefix = vit.cls_token
    if vit.reg_token is not None:
        prefix = torch.cat([prefix, vit.reg_token], 1)
    num_prefix = prefix.shape[1]
    prefix = prefix.expand(batch, -1, -1)
    codes = vit.rope.get_embed((height, width))
    copies = 1
    taps = []
    for index, block in enumerate(vit.blocks):
        wanted = rows * columns if index in window_blocks else 1
        if wanted > copies:
            prefix = prefix.repeat(1, wanted, 1)
        elif wanted < copies:
            prefix = prefix.reshape(batch, copies, num_prefix, dim).mean(1)
        copies = wanted
        of_prefix = torch.arange(copies).repeat_interleave(num_prefix)
        owner = torch.cat([of_prefix, of_patch if copies > 1 else 0 * of_patch])
        still = torch.zeros(len(of_prefix), codes.shape[-1], dtype=codes.dtype)
        still[:, codes.shape[-1] // 2 :] = 1  # sine 0, cosine 1
        x = torch.cat([prefix, patches], 1)
        x = x + scaled(
            block.gamma_1,
            masked_attention(
                block.attn,
                block.norm1(x),
                torch.cat([still, codes]),
                owner[:, None] == owner,
            ),
        )
        x = x + scaled(block.gamma_2, block.mlp(block.norm2(x)))
        prefix, patches = x.split([len(of_prefix), height * width], 1)
        if index in backbone.tap_blocks:
            tap = vit.norm(patches) if backbone.tap_norm == "final" else patches
            taps.append(tap.mT.reshape(batch, dim, height, width))
    return taps


# ---- the partition ----


def test_patches_are_ordered_window_by_window():
    grid = WindowGrid.fitting(2, 4, 2)
    patches = torch.arange(8).view(1, 8, 1)
    assert (grid.rows, grid.columns, grid.window_size) == (2, 2, (1, 2))
    assert grid.order(patches).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    grid = WindowGrid.fitting(4, 4, 2)
    ordered = grid.order(torch.arange(16).view(1, 16, 1)).flatten().tolist()
    assert ordered[:4] == [0, 1, 4, 5] and ordered[4:8] == [2, 3, 6, 7]


def test_a_map_is_restored_from_ordered_patches():
    grid = WindowGrid.fitting(6, 4, 2)
    maps = torch.rand(3, 5, 6, 4)
    ordered = grid.order(maps.flatten(2).mT)
    assert torch.equal(grid.to_map(ordered), maps)


@pytest.mark.parametrize(
    ("side", "windows", "expected"),
    [(40, 2, 2), (40, 3, 1), (42, 4, 2), (40, 4, 4), (2, 4, 2), (5, 2, 1)],
)
def test_the_number_of_windows_is_reduced_until_it_divides_the_grid(
    side, windows, expected
):
    grid = WindowGrid.fitting(side, 12, windows)
    assert grid.rows == expected
    assert side % grid.rows == 0


# ---- attention ----


@pytest.mark.parametrize("model_name", MODELS)
def test_one_window_over_everything_is_global_attention(model_name):
    backbone = backbone_of_four(model_name)
    images = torch.rand(2, 3, 64, 96)
    expected = backbone.taps_of(backbone.vit, images)
    taps = taps_with(backbone, images, 1, (0, 1, 2, 3))
    for tap, other in zip(taps, expected, strict=True):
        assert torch.equal(tap, other)


def test_windows_without_a_block_that_has_them_are_global_attention():
    backbone = backbone_of_four()
    images = torch.rand(2, 3, 64, 96)
    expected = backbone.taps_of(backbone.vit, images)
    for tap, other in zip(taps_with(backbone, images, 2, ()), expected):
        torch.testing.assert_close(tap, other)


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize(
    "window_blocks", [(0, 2), (0, 1, 2), (1, 3), (0, 1, 2, 3)], ids=str
)
def test_windows_are_masks_over_the_whole_sequence(model_name, window_blocks):
    backbone = backbone_of_four(model_name).double()
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    expected = reference_taps(backbone, images, (2, 2), window_blocks)
    taps = taps_with(backbone, images, 2, window_blocks)
    for tap, other in zip(taps, expected, strict=True):
        torch.testing.assert_close(tap, other)


def test_the_number_of_windows_may_differ_between_rows_and_columns():
    backbone = backbone_of_four().double()
    images = torch.rand(1, 3, 128, 96, dtype=torch.float64)
    expected = reference_taps(backbone, images, (4, 2), (0, 2))
    for tap, other in zip(taps_with(backbone, images, 4), expected):
        torch.testing.assert_close(tap, other)


def test_gradients_are_those_of_the_reference():
    backbone = backbone_of_four().double()
    results = []
    for compute in (
        lambda x: taps_with(backbone, x, 2),
        lambda x: reference_taps(backbone, x, (2, 2), (0, 2)),
    ):
        images = torch.rand(
            2,
            3,
            64,
            64,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
        ).requires_grad_()
        backbone.zero_grad()
        sum(tap.square().sum() for tap in compute(images)).backward()
        names = dict(backbone.vit.named_parameters())
        gradients = {name: p.grad.clone() for name, p in names.items()}
        results.append(gradients | {"images": images.grad})
    windowed, expected = results
    assert windowed.keys() == expected.keys()
    for name, gradient in windowed.items():
        assert gradient.any(), name
        torch.testing.assert_close(gradient, expected[name])


def test_a_change_in_one_window_stays_there_until_a_global_block():
    backbone = backbone_of_four(tap_blocks=[0])
    images = torch.rand(1, 3, 64, 64)
    changed = images.clone()
    changed[..., :32, :32] = 0
    before, after = (
        taps_with(backbone, x, 2, (0,))[0] for x in (images, changed)
    )
    differs = (before != after).any(1)[0]
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(differs, expected)


def test_a_window_in_the_image_and_alone_agree_in_all_but_position():
    """Without codes of positions an image of four equal windows is four times the window."""
    backbone = backbone_of_four()
    backbone.vit.rope.get_embed = lambda shape: torch.cat(
        [
            torch.zeros(shape[0] * shape[1], 16),
            torch.ones(shape[0] * shape[1], 16),
        ],
        -1,
    )
    part = torch.rand(1, 3, 32, 32)
    alone = taps_with(backbone, part, 1, (0, 1, 2, 3))
    whole = taps_with(backbone, part.repeat(1, 1, 2, 2), 2, (0, 1, 2, 3))
    for tap, other in zip(whole, alone):
        torch.testing.assert_close(tap, other.repeat(1, 1, 2, 2))


# ---- the backbone ----


def test_by_default_all_blocks_that_are_not_tapped_have_windows():
    backbone = small_backbone(depth=12, windows=2)
    assert backbone.window_blocks == [0, 1, 2, 3, 4, 6, 7, 9, 10]


def test_maps_are_the_adapters_of_windowed_taps():
    _, windowed = pair()
    images = torch.rand(2, 3, 64, 96)
    normalized = (images - windowed.image_mean) / windowed.image_std
    taps = taps_with(windowed, normalized, 2, (0, 2))
    expected = windowed.adapter(taps, normalized)
    for maps, other in zip(windowed(images), expected, strict=True):
        assert torch.equal(maps, other)


def test_windows_change_the_maps_and_one_window_does_not():
    plain, windowed = pair()
    single = backbone_of_four(windows=1)
    single.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(single(images)[0], plain(images)[0])
    assert not torch.allclose(windowed(images)[0], plain(images)[0])


def test_weights_and_parameters_are_those_of_a_global_vit():
    plain, windowed = backbone_of_four(), backbone_of_four(windows=2)
    shapes = {name: x.shape for name, x in plain.state_dict().items()}
    others = {name: x.shape for name, x in windowed.state_dict().items()}
    assert others == shapes


def test_published_weights_load_unchanged(tmp_path):
    source, path = small_backbone().vit, tmp_path / "dinov3.pth"
    torch.save(official_layout(source, live_biases=False), path)
    backbone = small_backbone(
        windows=2,
        window_blocks=[0],
        pretrained=True,
        checkpoint_path=str(path),
    )
    backbone.load_pretrained()
    loaded = backbone.vit.state_dict()
    for name, weight in source.state_dict().items():
        assert torch.equal(loaded[name], weight), name


@pytest.mark.parametrize("size", [(32, 32), (32, 96), (96, 160), (224, 64)])
@pytest.mark.parametrize("windows", [2, 3, 4])
def test_every_multiple_of_32_pixels_works(size, windows):
    backbone = backbone_of_four(windows=windows)
    maps = backbone(torch.rand(1, 3, *size))
    expected = [(size[0] // s, size[1] // s) for s in (8, 16, 32)]
    assert [tuple(x.shape[-2:]) for x in maps] == expected
    assert all(x.isfinite().all() for x in maps)


def test_images_of_a_batch_do_not_act_on_each_other():
    _, windowed = pair()
    images = torch.rand(3, 3, 64, 64)
    together = windowed(images)
    for index in range(3):
        alone = windowed(images[index : index + 1])
        for maps, other in zip(alone, together):
            torch.testing.assert_close(maps[0], other[index])


def test_gradient_checkpointing_gives_the_same_gradients():
    _, plain = pair()
    saving = backbone_of_four(windows=2, gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    calls = []
    saving.vit.blocks[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    images = torch.rand(2, 3, 32, 64)
    expected = gradients_of(plain.train(), images)
    for name, gradient in gradients_of(saving.train(), images).items():
        torch.testing.assert_close(gradient, expected[name])
    assert len(calls) == 2  # forward, and again in the backward pass


def test_stochastic_depth_acts_in_training():
    backbone = backbone_of_four(windows=2, drop_path=0.9).train()
    images = torch.rand(2, 3, 64, 64)
    assert not torch.equal(backbone(images)[0], backbone(images)[0])
    backbone.eval()
    assert torch.equal(backbone(images)[0], backbone(images)[0])


def test_random_scales_of_positions_act_in_training():
    backbone = backbone_of_four(windows=2, rope_rescale_coords=2.0).train()
    images = torch.rand(2, 3, 64, 64)
    assert not torch.equal(backbone(images)[0], backbone(images)[0])


def test_low_rank_updates_are_trained_and_merged():
    backbone = randomize(backbone_of_four(windows=2, lora_rank=2)).train()
    images = torch.rand(2, 3, 64, 64)
    sum(x.square().sum() for x in backbone(images)).backward()
    factors = [
        p for name, p in backbone.vit.named_parameters() if "lora_" in name
    ]
    assert factors and all(p.grad.any() for p in factors)
    backbone.eval()
    expected = backbone(images)
    for layer in list(backbone.modules()):
        if hasattr(layer, "lora_up"):
            layer.convert_to_deploy()
    for maps, other in zip(backbone(images), expected):
        torch.testing.assert_close(maps, other, rtol=1e-3, atol=1e-3)


def test_blocks_are_called_as_modules_so_that_compiled_ones_are_used():
    backbone, calls = backbone_of_four(windows=2), []
    for block in backbone.vit.blocks:
        block.register_forward_hook(
            lambda module, inputs, _: calls.append(tuple(inputs[0].shape))
        )
    backbone(torch.rand(1, 3, 64, 64))
    assert calls == [(4, 9, 32), (1, 21, 32), (4, 9, 32), (1, 21, 32)]


def test_a_copy_has_windows_too():
    _, windowed = pair()
    images = torch.rand(1, 3, 64, 64)
    copied = copy.deepcopy(windowed)
    assert torch.equal(copied(images)[0], windowed(images)[0])


def test_another_vit_is_read_without_windows():
    plain, windowed = pair()
    teacher = copy.deepcopy(plain.vit)
    images = torch.rand(1, 3, 64, 64)
    expected = plain.taps_of(plain.vit, images)
    for tap, other in zip(windowed.taps_of(teacher, images), expected):
        assert torch.equal(tap, other)


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"windows": 0},
            "DINOv3Backbone.windows is 0, expected at least 1, which means no windows",
        ),
        (
            {"window_blocks": [0]},
            "DINOv3Backbone.window_blocks is [0], but windows is 1, which means no windows; remove "
            "window_blocks, or set windows to 2",
        ),
        (
            {"windows": 2, "window_blocks": [2, 0]},
            "DINOv3Backbone.window_blocks is [2, 0], expected ascending numbers from 0 to 3, the last block "
            "that is read",
        ),
        (
            {"windows": 2, "window_blocks": [4]},
            "DINOv3Backbone.window_blocks is [4], expected ascending numbers from 0 to 3, the last block "
            "that is read",
        ),
        (
            {"windows": 2, "tap_blocks": [0, 1, 2, 3]},
            "DINOv3Backbone.windows is 2, but every block up to the last tap is tapped (tap_blocks [0, 1, 2, "
            "3]); name the blocks with windows in window_blocks",
        ),
    ],
    ids=str,
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        backbone_of_four(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "settings",
    [
        {"freeze_backbone": True},
        {"freeze_backbone_epochs": 1, "unfreeze_blocks": 0},
    ],
    ids=str,
)
def test_a_vit_that_is_never_trained_is_refused(settings):
    with pytest.raises(ConfigError) as caught:
        backbone_of_four(windows=2, **settings)
    assert str(caught.value) == (
        "DINOv3Backbone.windows is 2, but no block is ever trained (freeze_backbone, freeze_backbone_epochs, "
        "unfreeze_blocks, unfreeze_plan); expected a ViT that is trained, since published weights attend "
        "globally and must adapt to windows; let it train, or set windows to 1"
    )


def test_a_run_that_ends_before_a_block_is_trained_is_refused():
    backbone = backbone_of_four(windows=2, freeze_backbone_epochs=2)
    backbone.check_epochs(3)
    with pytest.raises(
        ConfigError, match="no block is trained in the 2 epochs of this run"
    ):
        backbone.check_epochs(2)
    backbone_of_four(freeze_backbone_epochs=2).check_epochs(2)


def warnings_of(backbone, caplog, epochs) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for epoch in epochs:
            backbone.set_epoch(epoch)
    return [record.getMessage() for record in caplog.records]


def test_blocks_with_windows_that_are_frozen_at_first_are_reported(caplog):
    backbone = backbone_of_four(windows=2, freeze_backbone_epochs=2)
    (message,) = warnings_of(backbone, caplog, range(4))
    assert message.startswith(
        "DINOv3Backbone: 2 of the 2 blocks with windows are frozen in the phase from epoch 1; "
    )


def test_blocks_with_windows_that_stay_frozen_are_reported_in_each_phase(
    caplog,
):
    backbone = backbone_of_four(
        windows=2, freeze_backbone_epochs=2, unfreeze_blocks=2
    )
    first, second = warnings_of(backbone, caplog, range(4))
    assert (
        "2 of the 2 blocks with windows are frozen in the phase from epoch 1"
        in first
    )
    assert (
        "1 of the 2 blocks with windows are frozen in the phase from epoch 3"
        in second
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"windows": 2},
        {"freeze_backbone_epochs": 2},
        {"windows": 2, "lora_rank": 2},
    ],
    ids=str,
)
def test_a_vit_that_is_trained_or_global_is_not_reported(caplog, settings):
    assert not warnings_of(backbone_of_four(**settings), caplog, range(4))


def test_images_that_windows_do_not_divide_are_reported_once(caplog):
    backbone = backbone_of_four(windows=3).train()
    with caplog.at_level(logging.WARNING):
        backbone(torch.rand(1, 3, 96, 96))  # 6 x 6 patches: 3 x 3 windows
        assert not caplog.records
        backbone(torch.rand(1, 3, 64, 96))
        backbone(torch.rand(1, 3, 64, 64))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        "DINOv3Backbone.windows is 3, which has no common divisor with the 4 x 6 patches of images of "
        "64 x 96 pixels in a direction: these images get 1 x 3 windows (rows x columns); windows: 2 divides "
        "every input size"
    )


def test_an_evaluation_does_not_report_windows(caplog):
    with caplog.at_level(logging.WARNING), torch.no_grad():
        backbone_of_four(windows=3)(torch.rand(1, 3, 64, 64))
    assert not caplog.records
