import pytest
import torch
import torch.nn.functional as F

from src.core import ConfigError
from src.nn.backbone.concat_adapter import ConcatAdapter
from tests.fixtures.vits import PLAIN, randomize, small_backbone

WIDTH, OUT = 12, 6


def adapter(strides=(8, 16, 32), num_taps=3, **settings):
    options = {"detail_channels": 4} | settings
    return randomize(
        ConcatAdapter(WIDTH, OUT, strides, num_taps, **options)
    ).eval()


def inputs(taps=3, height=64, width=96):
    """Return taps and the images that they belong to."""
    maps = [
        torch.randn(2, WIDTH, height // 16, width // 16) for _ in range(taps)
    ]
    return maps, torch.randn(2, 3, height, width)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 32)])
def test_there_is_a_map_for_each_stride(size):
    maps = adapter()(*inputs(3, *size))
    shapes = [tuple(x.shape) for x in maps]
    assert shapes == [(2, OUT, size[0] // s, size[1] // s) for s in (8, 16, 32)]


@torch.no_grad()
def test_each_level_is_the_projection_of_a_tap_and_the_details_of_its_stride():
    module = adapter()
    taps, images = inputs()
    detail = module.detail
    stem = F.max_pool2d(F.gelu(detail.stem[1](detail.stem[0](images))), 3, 2, 1)
    fine = detail.conv2[1](detail.conv2[0](stem))
    middle = detail.conv3[2](detail.conv3[1](F.gelu(fine)))
    coarse = detail.conv4[2](detail.conv4[1](F.gelu(middle)))
    resized = [
        F.interpolate(taps[0], size=(8, 12), mode="bilinear"),
        taps[1],
        F.avg_pool2d(taps[2], 2),
    ]
    for index, details in enumerate((fine, middle, coarse)):
        joined = torch.cat([resized[index], details], 1)
        expected = module.norms[index](module.convs[index](joined))
        torch.testing.assert_close(
            module(taps, images)[index], expected, rtol=1e-4, atol=1e-5
        )


def test_one_tap_serves_all_levels():
    maps = adapter(num_taps=1)(*inputs(1))
    assert [x.shape[-1] for x in maps] == [12, 6, 3]


def test_without_details_a_level_is_the_projection_of_its_tap():
    module = adapter(detail_channels=0)
    taps, images = inputs()
    assert module.convs[1].in_channels == WIDTH
    expected = module.norms[1](module.convs[1](taps[1]))
    torch.testing.assert_close(module(taps, images)[1], expected)


def test_another_number_of_taps_is_refused():
    with pytest.raises(ConfigError, match="names 2 blocks, expected one"):
        adapter(num_taps=2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tap_norm": "own"}, "tap_norm: own"),
        ({"upsample_mode": "nearest"}, "upsample_mode: nearest"),
        ({"adapter_start": "random"}, "adapter_start: random"),
        ({"detail_strides": [8]}, r"detail_strides: \[8\]"),
        ({"position_encoding": True}, "position_encoding: True"),
    ],
)
def test_settings_of_the_other_adapter_are_refused(settings, named):
    with pytest.raises(ConfigError, match=f"adapter: concat has no {named}"):
        small_backbone(PLAIN, adapter="concat", tap_blocks=[1], **settings)


def test_gradients_reach_every_parameter():
    module = adapter().train()
    taps, images = inputs()
    sum(x.square().mean() for x in module(taps, images)).backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("detail_channels", [0, 4])
def test_merged_norms_give_the_same_maps(detail_channels):
    model = adapter(detail_channels=detail_channels).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    taps, images = inputs()
    with torch.no_grad():
        before = model(taps, images)
        model.convert_to_deploy()
        after = model(taps, images)
    for found, expected in zip(after, before):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    kinds = {type(module).__name__ for module in model.modules()}
    assert "BatchNorm2d" not in kinds
