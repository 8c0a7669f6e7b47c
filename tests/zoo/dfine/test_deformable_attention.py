import math

import pytest
import torch
import torch.nn.functional as F

from src.core import ConfigError
from src.ops.deformable import LevelTokens
from src.zoo.dfine.deformable_attention import (
    MultiScaleDeformableAttention,
    split_heads,
)
from tests.fixtures.vits import randomize

WIDTH, HEADS, POINTS, SHAPES = 8, 2, [2, 3], [(4, 6), (2, 3)]


def attention(**settings):
    module = MultiScaleDeformableAttention(WIDTH, HEADS, POINTS, **settings)
    scale = module.num_points_scale.clone()
    randomize(module).num_points_scale.copy_(scale)
    return module


def inputs(batch=2, queries=5):
    tokens = torch.randn(batch, sum(h * w for h, w in SHAPES), WIDTH)
    reference = torch.rand(batch, queries, 4) * 0.6 + 0.2
    return torch.randn(batch, queries, WIDTH), reference, tokens


def sampled(map_chw, x, y):
    """Return the bilinear sample of a map at (x, y) in 0..1; zero outside."""
    channels, height, width = map_chw.shape
    px, py = x * width - 0.5, y * height - 0.5
    total = torch.zeros(channels)
    for row in (math.floor(py), math.floor(py) + 1):
        for column in (math.floor(px), math.floor(px) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (
                    (1 - abs(py - row))
                    * (1 - abs(px - column))
                    * map_chw[:, row, column]
                )
    return total


def nearest(map_chw, x, y):
    """Return the pixel of a map at trunc(x * w + 0.5), clamped."""
    _, height, width = map_chw.shape
    return map_chw[
        :,
        min(max(int(y * height + 0.5), 0), height - 1),
        min(max(int(x * width + 0.5), 0), width - 1),
    ]


@pytest.mark.parametrize("as_maps", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
@torch.no_grad()
def test_output_equals_a_loop_over_queries_heads_and_points(discrete, as_maps):
    module, (query, reference, tokens) = attention(discrete=discrete), inputs()
    values = module.values_of(tokens, SHAPES)
    if as_maps:
        values = split_heads(tokens, HEADS, SHAPES)
    result = module(query, reference, values)
    offsets = F.linear(
        query, module.sampling_offsets.weight, module.sampling_offsets.bias
    ).view(2, 5, HEADS, 5, 2)
    weights = (
        F.linear(
            query,
            module.attention_weights.weight,
            module.attention_weights.bias,
        )
        .view(2, 5, HEADS, 5)
        .softmax(-1)
    )
    expected = torch.zeros(2, 5, WIDTH)
    level_of, scale = [0, 0, 1, 1, 1], [1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3]
    starts = [0, 24, 30]
    for b in range(2):
        maps = [
            tokens[b, starts[i] : starts[i + 1]].T.reshape(WIDTH, *SHAPES[i])
            for i in range(2)
        ]
        for q in range(5):
            for head in range(HEADS):
                channels = slice(
                    head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS
                )
                for point in range(5):
                    x, y = (
                        reference[b, q, :2]
                        + offsets[b, q, head, point]
                        * scale[point]
                        * reference[b, q, 2:]
                        * 0.5
                    ).tolist()
                    sample = (nearest if discrete else sampled)(
                        maps[level_of[point]][channels], x, y
                    )
                    expected[b, q, channels] += (
                        weights[b, q, head, point] * sample
                    )
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_tokens_are_read_for_inference_and_maps_with_gradients():
    module, (_, _, tokens) = attention(), inputs()
    assert isinstance(module.values_of(tokens, SHAPES), list)
    with torch.no_grad():
        assert isinstance(module.values_of(tokens, SHAPES), LevelTokens)


@torch.no_grad()
def test_other_kinds_of_sampling_read_maps_for_inference_too():
    _, _, tokens = inputs()
    by_gather = attention()
    by_gather.sample_by_gather()
    for module in (attention(discrete=True), by_gather):
        assert isinstance(module.values_of(tokens, SHAPES), list)


@torch.no_grad()
def test_sampling_by_gather_gives_the_same():
    module, (query, reference, tokens) = attention(), inputs()
    expected = module(query, reference, module.values_of(tokens, SHAPES))
    module.sample_by_gather()
    found = module(query, reference, module.values_of(tokens, SHAPES))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_points_of_a_head_start_on_a_ray_as_published():
    bias = MultiScaleDeformableAttention(
        256, 8, [3, 6, 3]
    ).sampling_offsets.bias.view(8, 12, 2)
    assert bias[1].round(decimals=5).tolist() == [
        [n, n] for n in (1, 2, 3, 1, 2, 3, 4, 5, 6, 1, 2, 3)
    ]


def test_rays_of_the_heads_point_all_around_and_reach_a_square():
    bias = MultiScaleDeformableAttention(
        256, 8, [1]
    ).sampling_offsets.bias.view(8, 2)
    expected = [
        [1, 0],
        [1, 1],
        [0, 1],
        [-1, 1],
        [-1, 0],
        [-1, -1],
        [0, -1],
        [1, -1],
    ]
    torch.testing.assert_close(
        bias.detach(),
        torch.tensor(expected, dtype=torch.float32),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "name",
    [
        "sampling_offsets.weight",
        "attention_weights.weight",
        "attention_weights.bias",
    ],
)
def test_other_parameters_start_from_zero(name):
    assert (
        not MultiScaleDeformableAttention(16, 2, [3, 6])
        .get_parameter(name)
        .any()
    )


def test_offsets_are_scaled_by_the_points_of_their_level():
    assert MultiScaleDeformableAttention(
        16, 2, [2, 4]
    ).num_points_scale.tolist() == [
        0.5,
        0.5,
        0.25,
        0.25,
        0.25,
        0.25,
    ]


def test_there_is_no_projection_of_values_or_output():
    assert {name for name, _ in attention().named_parameters()} == {
        f"{part}.{kind}"
        for part in ("sampling_offsets", "attention_weights")
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("discrete", "trained"), [(False, True), (True, False)]
)
def test_offsets_are_not_trained_where_they_have_no_gradient(discrete, trained):
    assert (
        attention(discrete=discrete).sampling_offsets.weight.requires_grad
        == trained
    )


def test_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(
        ConfigError, match="decoder width 10 is not a multiple of nhead 4"
    ):
        MultiScaleDeformableAttention(10, 4, [2])


def test_heads_take_neighbouring_channels_and_levels_come_in_row_major_order():
    _, _, tokens = inputs(batch=1)
    maps = split_heads(tokens, HEADS, SHAPES)
    assert [tuple(x.shape) for x in maps] == [(2, 4, 4, 6), (2, 4, 2, 3)]
    assert torch.equal(maps[1][1, :, 1, 2], tokens[0, 24 + 5, 4:])
