import pytest
import torch
import torch.nn.functional as F

from src.core import ConfigError
from src.nn.backbone.spatial_tuning_adapter import (
    SpatialTuningAdapter,
    own_tap_logits,
)
from tests.fixtures.vits import randomize

WIDTH, OUT, TAPS = 12, 6, 2


def adapter(strides=(8, 16, 32), **settings):
    return randomize(
        SpatialTuningAdapter(
            WIDTH, OUT, strides, TAPS, **({"detail_channels": 4} | settings)
        )
    ).eval()


def inputs(height=64, width=96, batch=2):
    """Return taps and the images that they belong to."""
    return [
        torch.randn(batch, WIDTH, height // 16, width // 16)
        for _ in range(TAPS)
    ], torch.randn(batch, 3, height, width)


@pytest.mark.parametrize(
    "strides", [(8,), (16,), (32,), (8, 16), (8, 32), (16, 32), (8, 16, 32)]
)
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 32)])
def test_there_is_a_map_for_each_stride(strides, size):
    maps = adapter(strides)(*inputs(*size))
    assert [tuple(x.shape) for x in maps] == [
        (2, OUT, size[0] // s, size[1] // s) for s in strides
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"upsample_mode": "nearest"},
        {"layer_norm": True},
        {"position_encoding": True},
        {"detail_channels": 0},
        {
            "upsample_mode": "nearest",
            "layer_norm": True,
            "position_encoding": True,
            "detail_channels": 0,
        },
    ],
)
def test_every_option_keeps_the_shapes(settings):
    maps = adapter(**settings)(*inputs())
    assert [tuple(x.shape) for x in maps] == [
        (2, OUT, 8, 12),
        (2, OUT, 4, 6),
        (2, OUT, 2, 3),
    ]


def test_maps_may_differ_in_their_channels():
    module = randomize(
        SpatialTuningAdapter(
            WIDTH, [5, 6, 7], (8, 16, 32), TAPS, detail_channels=4
        )
    ).eval()
    assert [tuple(x.shape) for x in module(*inputs())] == [
        (2, 5, 8, 12),
        (2, 6, 4, 6),
        (2, 7, 2, 3),
    ]


@pytest.mark.parametrize("channels", [[6, 6], [6, 6, 6, 6], [6, 0, 6], 0, []])
def test_channels_that_do_not_fit_the_strides_are_refused(channels):
    with pytest.raises(ConfigError) as caught:
        SpatialTuningAdapter(WIDTH, channels, (8, 16, 32), TAPS)
    assert str(caught.value) == (
        f"DINOv3Backbone.out_channels is {channels}, expected one number from 1, "
        "or one for each of the 3 strides [8, 16, 32]"
    )


@pytest.mark.parametrize("strides", [(16, 8), (8, 8), (4, 8), (8, 64), ()])
def test_impossible_strides_are_refused(strides):
    with pytest.raises(ConfigError) as caught:
        SpatialTuningAdapter(WIDTH, OUT, strides, TAPS)
    assert (
        str(caught.value)
        == f"DINOv3Backbone.feat_strides is {list(strides)}, expected ascending strides out of [8, 16, 32]"
    )


def test_stride_16_is_a_mixture_of_all_taps_through_a_1x1_convolution():
    module, (taps, images) = adapter((16,), detail_channels=0), inputs()
    shares = module.tap_mix[0].softmax(-1)
    mixed = shares[0] * taps[0] + shares[1] * taps[1]
    torch.testing.assert_close(
        module(taps, images)[0],
        F.gelu(module.norms[0](module.project[0](mixed))),
    )


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_stride_8_is_upsampled_in_the_mode_asked_for(mode):
    module, (taps, images) = (
        adapter((8,), detail_channels=0, upsample_mode=mode),
        inputs(),
    )
    taps = [taps[0], taps[0]]
    upsampled = F.interpolate(
        taps[0], scale_factor=2, mode=mode
    )  # before the projection, which is linear: the same result
    torch.testing.assert_close(
        module(taps, images)[0],
        F.gelu(module.norms[0](module.project[0](upsampled))),
        rtol=1e-4,
        atol=1e-5,
    )


def test_stride_32_goes_through_a_depthwise_convolution():
    module = adapter((32,))
    assert (
        module.shrink.stride,
        module.shrink.groups,
        module.shrink.weight.numel(),
    ) == (
        (2, 2),
        WIDTH,
        9 * WIDTH,
    )


def test_layer_norm_takes_scale_and_offset_out_of_each_tap():
    module, (taps, images) = adapter(layer_norm=True), inputs()
    scaled = [3 * taps[0] + 1, taps[1]]
    for a, b in zip(module(taps, images), module(scaled, images)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_without_layer_norm_the_scale_of_a_tap_counts():
    module, (taps, images) = adapter(), inputs()
    assert not torch.allclose(
        module(taps, images)[0], module([3 * taps[0] + 1, taps[1]], images)[0]
    )


def test_without_position_encoding_the_same_features_give_the_same_map_wherever_they_are():
    module = adapter((16,), detail_channels=0)
    x = module([torch.ones(1, WIDTH, 3, 4)] * TAPS, torch.zeros(1, 3, 48, 64))[
        0
    ]
    assert torch.allclose(x, x[..., :1, :1].expand_as(x))


def test_position_encoding_distinguishes_rows_from_columns():
    module = adapter((16,), detail_channels=0, position_encoding=True)
    x = module([torch.ones(1, WIDTH, 3, 4)] * TAPS, torch.zeros(1, 3, 48, 64))[
        0
    ]
    assert not torch.allclose(
        x[..., 0, 0], x[..., 1, 0]
    ) and not torch.allclose(x[..., 0, 0], x[..., 0, 1])


def test_position_encoding_is_row_code_plus_column_code_at_its_own_size():
    module = adapter(position_encoding=True)
    torch.testing.assert_close(
        module._position(torch.Size([40, 40])),
        module.row_code + module.column_code,
    )


def test_without_a_detail_branch_the_image_does_not_matter():
    module, (taps, images) = adapter(detail_channels=0), inputs()
    assert module.detail is None and module.add_detail is None
    assert all(
        torch.equal(a, b)
        for a, b in zip(module(taps, images), module(taps, images + 1))
    )


@pytest.mark.parametrize("level", [0, 1, 2])
def test_with_a_detail_branch_the_image_reaches_every_level(level):
    module, (taps, images) = adapter(), inputs()
    assert not torch.allclose(
        module(taps, images)[level], module(taps, images.flip(-1))[level]
    )


@pytest.mark.parametrize(
    ("detail_strides", "layers"),
    [([8], 3), ([16], 4), ([8, 32], 5), ([8, 16, 32], 5)],
)
def test_the_image_reaches_only_the_levels_that_get_details(
    detail_strides, layers
):
    module, (taps, images) = adapter(detail_strides=detail_strides), inputs()
    reached = []
    flipped = module(taps, images.flip(-1))
    for stride, a, b in zip((8, 16, 32), module(taps, images), flipped):
        if not torch.equal(a, b):
            reached.append(stride)
    assert reached == detail_strides
    assert len(module.add_detail) == len(detail_strides)
    assert len(module.detail.layers) == layers


def test_details_have_the_channels_of_the_maps_that_get_them():
    module = SpatialTuningAdapter(
        WIDTH,
        [5, 6, 7],
        num_taps=TAPS,
        detail_channels=4,
        detail_strides=[8, 32],
    )
    assert [x.out_channels for x in module.add_detail] == [5, 7]


def test_naming_all_strides_of_details_is_the_default():
    default = adapter().state_dict()
    named = adapter(detail_strides=[8, 16, 32]).state_dict()
    assert {k: v.shape for k, v in default.items()} == {
        k: v.shape for k, v in named.items()
    }


@pytest.mark.parametrize("detail_strides", [[], [16, 8], [8, 8], [4], [8, 32]])
def test_strides_of_details_without_a_map_are_refused(detail_strides):
    with pytest.raises(ConfigError) as caught:
        adapter((8, 16), detail_strides=detail_strides)
    assert str(caught.value) == (
        f"DINOv3Backbone.detail_strides is {detail_strides}, expected ascending strides out of feat_strides "
        "[8, 16]; to build no detail branch, set detail_channels to 0"
    )


def test_strides_of_details_without_a_detail_branch_are_refused():
    with pytest.raises(ConfigError) as caught:
        adapter(detail_strides=[8], detail_channels=0)
    assert str(caught.value) == (
        "DINOv3Backbone.detail_strides is [8], but detail_channels is 0 and builds no detail branch; "
        "remove detail_strides, or set detail_channels to 1 or more"
    )


def test_gradients_reach_every_parameter():
    module = SpatialTuningAdapter(
        WIDTH,
        OUT,
        num_taps=TAPS,
        detail_channels=4,
        layer_norm=True,
        position_encoding=True,
    )
    sum(x.square().sum() for x in module(*inputs())).backward()
    assert [
        name for name, p in module.named_parameters() if p.grad is None
    ] == []


def test_batch_norms_are_plain_ones_so_that_a_cpu_can_train():
    assert {
        type(m).__name__
        for m in adapter().modules()
        if "BatchNorm" in type(m).__name__
    } == {"BatchNorm2d"}


# ---- values before training ----


def test_a_smooth_start_gives_each_level_mainly_its_own_tap():
    module = SpatialTuningAdapter(WIDTH, OUT, num_taps=3)
    shares = module.tap_mix.softmax(-1)
    own = torch.eye(3, dtype=torch.bool)
    torch.testing.assert_close(shares[own], torch.full((3,), 0.85))
    torch.testing.assert_close(shares[~own], torch.full((6,), 0.075))
    assert module.tap_mix.requires_grad


@pytest.mark.parametrize(
    ("levels", "taps", "own"),
    [
        (3, 3, [0, 1, 2]),
        (3, 1, [0, 0, 0]),
        (3, 2, [0, 1, 1]),
        (3, 4, [0, 2, 3]),
        (2, 3, [0, 2]),
        (1, 3, [1]),
    ],
)
def test_the_own_tap_of_a_level_is_the_nearest_in_depth(levels, taps, own):
    shares = own_tap_logits(levels, taps).softmax(-1)
    assert shares.argmax(-1).tolist() == own
    torch.testing.assert_close(
        shares.amax(-1), torch.full((levels,), 0.85 if taps > 1 else 1.0)
    )


def test_a_smooth_start_shrinks_to_means_of_2_x_2_cells():
    x = torch.randn(2, WIDTH, 6, 8)
    shrunk = SpatialTuningAdapter(WIDTH, OUT, num_taps=TAPS).shrink(x)
    torch.testing.assert_close(shrunk, F.avg_pool2d(x, 2))


@pytest.mark.parametrize("axis", [2, 3])
def test_cells_of_a_smooth_start_at_stride_32_are_not_shifted(axis):
    """On a map of pixel positions, a cell at stride 32 has the position of its middle."""
    shape = [1, WIDTH, 6, 8]
    middles = 16 * torch.arange(shape[axis]) + 8.0
    view = [1, 1, 1, 1]
    view[axis] = shape[axis]
    positions = middles.view(view).expand(shape)
    shrunk = SpatialTuningAdapter(WIDTH, OUT, num_taps=TAPS).shrink(positions)
    expected = 32 * torch.arange(shape[axis] // 2) + 16.0
    torch.testing.assert_close(shrunk[0, 0].select(2 - (axis - 1), 0), expected)


def detail_shares(start):
    """Return the share of the detail branch in the variance of each map before its norm, for random inputs.

    Taps of a random ViT differ little from each other and from cell to cell much, as these do.
    """
    torch.manual_seed(0)
    module = SpatialTuningAdapter(384, 256, num_taps=3, start=start)
    common = torch.randn(2, 384, 10, 10)
    taps = [common + 0.1 * torch.randn_like(common) for _ in range(3)]
    details, sums = [], []
    for projection in module.add_detail:
        projection.register_forward_hook(lambda *call: details.append(call[2]))
    for norm in module.norms:
        norm.register_forward_pre_hook(lambda *call: sums.append(call[1][0]))
    with torch.no_grad():
        module(taps, torch.randn(2, 3, 160, 160))
    shares = []
    for detail, total in zip(details, sums, strict=True):
        shares.append(
            float(detail.var((0, 2, 3)).mean() / total.var((0, 2, 3)).mean())
        )
    return shares


def test_details_are_a_small_part_of_the_maps_of_a_smooth_start():
    """With a random ViT-S: 17, 8 and 25 % of the variance, and 16, 15 and 37 % in DEIMv2's adapter."""
    p8, p16, p32 = detail_shares("smooth")
    assert 0.10 < p8 < 0.24
    assert 0.04 < p16 < 0.14
    assert 0.15 < p32 < 0.36


def test_details_are_a_large_part_of_the_maps_of_a_random_start():
    """With a random ViT-S: 44, 27 and 54 % of the variance."""
    p8, p16, p32 = detail_shares("random")
    assert 0.36 < p8 < 0.54
    assert 0.20 < p16 < 0.35
    assert 0.44 < p32 < 0.64


def test_a_random_start_gives_all_taps_the_same_share():
    module = SpatialTuningAdapter(WIDTH, OUT, num_taps=3, start="random")
    assert torch.equal(module.tap_mix.softmax(-1), torch.full((3, 3), 1 / 3))


def test_both_starts_draw_the_same_random_numbers():
    """A smooth start changes what was drawn, so that other layers do not depend on the setting."""
    modules = {}
    for start in ("smooth", "random"):
        torch.manual_seed(0)
        modules[start] = SpatialTuningAdapter(
            WIDTH, OUT, num_taps=3, detail_channels=4, start=start
        ).state_dict()
        modules[start]["next"] = torch.rand(1)
    smooth, random = modules["smooth"], modules["random"]
    assert list(smooth) == list(random)
    for level in range(3):
        name = f"add_detail.{level}.weight"
        assert torch.equal(smooth[name], 0.5 * random[name])
    changed = {
        "tap_mix",
        "shrink.weight",
        *(f"add_detail.{i}.weight" for i in range(3)),
    }
    for name in smooth.keys() - changed:
        assert torch.equal(smooth[name], random[name])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"detail_strides": (8,)},
        {"detail_channels": 0},
        {"upsample_mode": "nearest"},
    ],
)
def test_merged_norms_give_the_same_maps(settings):
    model = adapter(**settings)
    for norm in model.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    taps, images = inputs()
    with torch.no_grad():
        before = model(taps, images)
        for _ in range(2):  # once more changes nothing
            model.convert_to_deploy()
            for found, expected in zip(model(taps, images), before):
                assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    kinds = {type(module).__name__ for module in model.modules()}
    assert "BatchNorm2d" not in kinds
