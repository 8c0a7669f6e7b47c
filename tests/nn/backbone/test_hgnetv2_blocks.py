import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src.nn.backbone.hgnetv2_blocks import (
    ConvBNAct,
    HGBlock,
    HGStage,
    LearnableAffineBlock,
    LightConvBNAct,
    Stem,
    _MaxOfFour,
)
from tests.fixtures.vits import randomize


def test_learnable_affine_block_scales_and_shifts():
    block = LearnableAffineBlock()
    block.scale.data.fill_(2.0)
    block.bias.data.fill_(0.5)
    torch.testing.assert_close(
        block(torch.tensor([[1.0, -1.0]])), torch.tensor([[2.5, -1.5]])
    )


def test_learnable_affine_block_starts_as_the_identity():
    block = LearnableAffineBlock()
    assert (block.scale.item(), block.bias.item()) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("use_act", "use_lab", "has_lab"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
def test_affine_block_follows_an_activation_only(use_act, use_lab, has_lab):
    assert (
        hasattr(
            ConvBNAct(2, 3, 1, use_act=use_act, use_lab=use_lab).lab, "scale"
        )
        == has_lab
    )


def test_convolution_norm_relu_and_affine_block_come_in_this_order():
    block, x = (
        randomize(ConvBNAct(3, 4, 3, use_lab=True)).eval(),
        torch.randn(1, 3, 5, 6),
    )
    torch.testing.assert_close(
        block(x), block.lab(F.relu(block.bn(block.conv(x))))
    )


def test_light_convolution_is_pointwise_without_then_depthwise_with_activation():
    block, x = (
        randomize(LightConvBNAct(3, 4, 5, use_lab=True)).eval(),
        torch.randn(1, 3, 6, 6),
    )
    assert (
        block.conv1.conv.kernel_size,
        block.conv2.conv.kernel_size,
        block.conv2.conv.groups,
    ) == (
        (1, 1),
        (5, 5),
        4,
    )
    torch.testing.assert_close(
        block(x),
        block.conv2.lab(
            F.relu(
                block.conv2.bn(
                    block.conv2.conv(block.conv1.bn(block.conv1.conv(x)))
                )
            )
        ),
    )


def test_stem_quarters_the_size_by_convolutions_and_pooling():
    stem, x = (
        randomize(Stem(3, 8, 6, use_lab=True)).eval(),
        torch.randn(2, 3, 32, 48),
    )
    first = F.pad(stem.stem1(x), (0, 1, 0, 1))
    convolved = stem.stem2b(F.pad(stem.stem2a(first), (0, 1, 0, 1)))
    pooled = F.max_pool2d(first, 2, stride=1, ceil_mode=True)
    expected = stem.stem4(stem.stem3(torch.cat([pooled, convolved], 1)))
    assert expected.shape == (2, 6, 8, 12)
    torch.testing.assert_close(stem(x), expected)


def test_own_pooling_equals_torchs():
    x = torch.randn(2, 3, 9, 7)
    assert torch.equal(_MaxOfFour.apply(x), F.max_pool2d(x, 2, stride=1))


def test_own_pooling_has_the_gradient_of_torchs():
    x, weight = (
        torch.randn(2, 3, 9, 7, requires_grad=True),
        torch.randn(2, 3, 8, 6),
    )
    (ours,) = torch.autograd.grad((_MaxOfFour.apply(x) * weight).sum(), x)
    (torchs,) = torch.autograd.grad(
        (F.max_pool2d(x, 2, stride=1) * weight).sum(), x
    )
    torch.testing.assert_close(ours, torchs)


def test_own_pooling_sends_the_gradient_of_a_tie_to_one_place_as_torchs_does():
    x = torch.tensor(
        [[[[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 2.0, 2.0]]]],
        requires_grad=True,
    )
    (ours,) = torch.autograd.grad(_MaxOfFour.apply(x).sum(), x)
    (torchs,) = torch.autograd.grad(F.max_pool2d(x, 2, stride=1).sum(), x)
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("light", [False, True])
def test_block_concatenates_every_layers_output(light, residual):
    block, x = (
        randomize(
            HGBlock(8, 4, 8, 3, 3, light=light, residual=residual, use_lab=True)
        ).eval(),
        torch.randn(1, 8, 5, 5),
    )
    outputs = [x]
    for layer in block.layers:
        outputs.append(layer(outputs[-1]))
    expected = block.aggregation[1](block.aggregation[0](torch.cat(outputs, 1)))
    torch.testing.assert_close(block(x), expected + x if residual else expected)


def test_all_blocks_of_a_stage_but_the_first_are_residual():
    stage = HGStage(
        4, 4, 8, 3, 2, 3, downsample=False, light=False, use_lab=False
    )
    assert [block.residual for block in stage.blocks] == [False, True, True]


@pytest.mark.parametrize(
    ("downsample", "size"), [(False, (6, 8)), (True, (3, 4))]
)
def test_stage_halves_the_size_only_if_it_downsamples(downsample, size):
    stage = HGStage(
        4, 4, 8, 1, 2, 3, downsample=downsample, light=False, use_lab=False
    )
    assert stage(torch.randn(2, 4, 6, 8)).shape == (2, 8, *size)


def test_downsampling_is_depthwise_without_activation():
    stage = HGStage(
        4, 4, 8, 1, 2, 3, downsample=True, light=False, use_lab=True
    )
    assert stage.downsample.conv.groups == 4
    assert isinstance(stage.downsample.act, nn.Identity) and isinstance(
        stage.downsample.lab, nn.Identity
    )
