import pytest
import torch
import torch.nn.functional as F

from src.zoo.dfine.csp_blocks import (
    ConvNorm,
    CSPLayer,
    RepNCSPELAN4,
    SCDown,
    SplitCSPLayer,
    VGGBlock,
)
from tests.fixtures.vits import randomize


def drawn(module):
    return randomize(module).eval()


def convert(module):
    for part in list(module.modules()):
        if hasattr(part, "convert_to_deploy"):
            part.convert_to_deploy()
    return module


BLOCKS = {
    "ConvNorm": lambda: ConvNorm(6, 6, 3, act="silu"),
    "depthwise ConvNorm": lambda: ConvNorm(6, 6, 3, stride=2, groups=6),
    "VGGBlock": lambda: VGGBlock(6, act="silu"),
    "CSPLayer": lambda: CSPLayer(6, 4, 2, act="silu"),
    "RepNCSPELAN4": lambda: RepNCSPELAN4(6, 4, 8, 3, 2, act="silu"),
    "SplitCSPLayer": lambda: SplitCSPLayer(6, 4, 2, act="silu"),
    "csp2": lambda: RepNCSPELAN4(6, 4, 8, 3, 2, act="silu", kind="gelan_csp2"),
    "slim": lambda: RepNCSPELAN4(6, 4, 8, 3, 2, act="silu", kind="gelan_slim"),
    "SCDown": lambda: SCDown(6),
}


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_fused_form_computes_the_same(name):
    block, x = drawn(BLOCKS[name]()), torch.randn(2, 6, 8, 10)
    expected = block(x)
    torch.testing.assert_close(
        convert(block)(x), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_fusing_twice_changes_nothing(name):
    block, x = convert(drawn(BLOCKS[name]())), torch.randn(2, 6, 8, 10)
    expected = block(x)
    assert torch.equal(convert(block)(x), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_fused_form_holds_convolutions_with_bias_and_no_norms(name):
    keys = set(convert(drawn(BLOCKS[name]())).state_dict())
    assert all(key.endswith((".weight", ".bias")) for key in keys) and not any(
        "norm." in key for key in keys
    )


def test_fused_keys_are_the_official_ones():
    assert set(convert(drawn(ConvNorm(2, 2, 1))).state_dict()) == {
        "conv_bn_fused.weight",
        "conv_bn_fused.bias",
    }
    assert set(convert(drawn(VGGBlock(2, act="silu"))).state_dict()) == {
        "conv.weight",
        "conv.bias",
    }


def test_vgg_block_sums_a_3x3_and_a_1x1_branch_without_an_identity():
    block, x = drawn(VGGBlock(4, act="silu")), torch.randn(1, 4, 5, 5)
    expected = F.silu(
        block.conv1.norm(block.conv1.conv(x))
        + block.conv2.norm(block.conv2.conv(x))
    )
    torch.testing.assert_close(block(x), expected)


def test_csp_layer_sums_two_paths_one_of_them_through_the_bottlenecks():
    block, x = drawn(CSPLayer(6, 4, 2, act="silu")), torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(
        block(x),
        block.bottlenecks[1](block.bottlenecks[0](block.conv1(x)))
        + block.conv2(x),
    )


def test_gelan_block_concatenates_both_halves_and_two_stages():
    block, x = (
        drawn(RepNCSPELAN4(6, 4, 8, 3, 2, act="silu")),
        torch.randn(1, 6, 5, 5),
    )
    first, second = block.cv1(x).split(4, 1)
    third = block.cv2(second)
    torch.testing.assert_close(
        block(x),
        block.cv4(torch.cat([first, second, third, block.cv3(third)], 1)),
    )


@pytest.mark.parametrize("act", ["silu", "relu", "gelu"])
def test_every_convolution_of_a_gelan_block_has_the_activation(act):
    block = RepNCSPELAN4(6, 4, 8, 3, 1, act=act)
    kinds = {
        type(conv.act)
        for conv in (
            block.cv1,
            block.cv4,
            block.cv2[0].conv1,
            block.cv2[0].conv2,
            block.cv2[1],
            block.cv2[0].bottlenecks[0],
        )
    }
    assert [kind.__name__.lower() for kind in kinds] == [act]


def test_down_sampling_halves_the_size_without_activation():
    block, x = drawn(SCDown(4)), torch.randn(1, 4, 6, 8)
    expected = block.cv2.norm(block.cv2.conv(block.cv1.norm(block.cv1.conv(x))))
    assert expected.shape == (1, 4, 3, 4)
    torch.testing.assert_close(block(x), expected)


def test_split_csp_layer_refines_one_half_and_adds_the_other():
    layer, x = (
        drawn(SplitCSPLayer(6, 4, 2, act="silu")),
        torch.randn(1, 6, 5, 5),
    )
    direct, refined = layer.conv1(x).split(4, 1)
    expected = direct + layer.bottlenecks[1](layer.bottlenecks[0](refined))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("gelan", ["CSPLayer", "ConvNorm"]),
        ("gelan_csp2", ["SplitCSPLayer", "ConvNorm"]),
        ("gelan_slim", ["SplitCSPLayer"]),
    ],
)
def test_kind_of_a_gelan_block_decides_about_its_stages(kind, layers):
    block = RepNCSPELAN4(6, 4, 8, 3, 2, act="silu", kind=kind)
    for stage in (block.cv2, block.cv3):
        assert [type(layer).__name__ for layer in stage] == layers
