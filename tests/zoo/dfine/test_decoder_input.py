"""The tokens that a decoder makes of the encoder's maps."""

import torch

from src.zoo.dfine.decoder_input import flatten_levels
from tests.fixtures.detector import WIDTH, feature_maps, small_decoder


def test_extra_levels_halve_the_coarsest_map():
    decoder = small_decoder(num_levels=5, num_points=2).eval()
    _, shapes = flatten_levels(feature_maps(), decoder.input_proj)
    assert shapes == [
        (8, 12),
        (4, 6),
        (2, 3),
        (1, 2),
        (1, 1),
    ] and decoder.feat_strides == [
        8,
        16,
        32,
        64,
        128,
    ]


def test_tokens_are_the_same_with_and_without_gradients():
    decoder = small_decoder().eval()
    maps = feature_maps()
    expected, shapes = flatten_levels(maps, decoder.input_proj)
    with torch.no_grad():
        found, same_shapes = flatten_levels(maps, decoder.input_proj)
    assert torch.equal(found, expected)
    assert found.is_contiguous()
    assert same_shapes == shapes
    height, width = shapes[0]
    row, column = 1, 2
    token = row * width + column
    assert torch.equal(found[:, token], maps[0][:, :, row, column])
    assert found.shape[1] == sum(h * w for h, w in shapes) > height * width


def test_an_input_of_another_width_is_projected_by_a_1x1_convolution():
    decoder = small_decoder(feat_channels=[8, WIDTH, 20])
    kinds = [
        tuple(project.conv.kernel_size) if hasattr(project, "conv") else None
        for project in decoder.input_proj
    ]
    assert kinds == [(1, 1), None, (1, 1)]
