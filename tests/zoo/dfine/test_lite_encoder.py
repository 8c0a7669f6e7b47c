import pytest
import torch
import torch.nn.functional as F

from src.core import ConfigError
from src.zoo.dfine import LiteEncoder
from tests.fixtures.vits import randomize


def encoder():
    return randomize(
        LiteEncoder([6], [16], hidden_dim=8, expansion=0.5, depth_mult=0.34)
    ).eval()


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_one_map_gives_two_levels(size):
    height, width = size[0] // 16, size[1] // 16
    fine, coarse = encoder()([torch.randn(2, 6, height, width)])
    assert fine.shape == (2, 8, height, width)
    assert coarse.shape == (2, 8, height // 2, width // 2)


def test_levels_are_fused_as_deimv2_does():
    module, x = encoder(), torch.randn(2, 6, 4, 8)
    a = module.input_proj[0].norm(module.input_proj[0].conv(x))
    pooled = F.avg_pool2d(a, 3, 2, 1, count_include_pad=True)
    down = module.down_sample1
    b = F.silu(down[2](down[1](pooled)))
    b = module.bi_fusion.cv(b + b.mean((2, 3), keepdim=True))
    up = F.interpolate(b, scale_factor=2, mode="nearest")
    fine = module.fpn_block(a + up)
    coarse = module.pan_block(b + module.down_sample2(fine))
    for ours, expected in zip(module([x]), (fine, coarse)):
        torch.testing.assert_close(ours, expected)


def test_channels_and_strides_of_the_output_are_attributes():
    module = encoder()
    assert module.out_channels == [8, 8] and module.out_strides == [16, 32]


@torch.no_grad()
def test_fused_encoder_computes_the_same():
    module, x = encoder(), torch.randn(2, 6, 4, 8)
    before = module([x])
    for part in list(module.modules()):
        if hasattr(part, "convert_to_deploy"):
            part.convert_to_deploy()
    for fused, expected in zip(module([x]), before):
        torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter():
    module = encoder().train()
    sum(y.square().mean() for y in module([torch.randn(2, 6, 4, 8)])).backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


def test_more_than_one_map_is_refused():
    with pytest.raises(ConfigError, match="LiteEncoder reads one map"):
        LiteEncoder([6, 8], [8, 16], hidden_dim=8)
