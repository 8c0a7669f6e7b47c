"""Sampling of feature maps at learned points, compared with plain loops."""

import math

import pytest
import torch

from src.ops.deformable import (
    LevelTokens,
    attention_to_tokens,
    deformable_attention,
    sample_bilinear,
    sample_bilinear_by_gather,
    sample_nearest_pixel,
)


def read(value: torch.Tensor, x: int, y: int) -> torch.Tensor:
    """Return the pixel `[c]` of a map `[c, h, w]`, zeros outside."""
    _, height, width = value.shape
    return (
        value[:, y, x]
        if 0 <= x < width and 0 <= y < height
        else torch.zeros(len(value), dtype=value.dtype)
    )


def bilinear(value: torch.Tensor, location: torch.Tensor) -> torch.Tensor:
    """Interpolate a map `[c, h, w]` at (x, y) in 0..1; pixel centres lie at (i + 0.5) / size."""
    _, height, width = value.shape
    x, y = location[0].item() * width - 0.5, location[1].item() * height - 0.5
    left, top = math.floor(x), math.floor(y)
    return sum(
        read(value, left + i, top + j)
        * abs(1 - i - (x - left))
        * abs(1 - j - (y - top))
        for i in (0, 1)
        for j in (0, 1)
    )


def nearest(value: torch.Tensor, location: torch.Tensor) -> torch.Tensor:
    _, height, width = value.shape
    x, y = (
        min(max(int(location[i].item() * size + 0.5), 0), size - 1)
        for i, size in enumerate((width, height))
    )
    return value[:, y, x]


def plain_loops(values, locations, weights, num_points, sample) -> torch.Tensor:
    batch, queries, heads, _, _ = locations.shape
    channels = values[0].shape[1]
    output = torch.zeros(batch, queries, heads * channels, dtype=torch.float64)
    level_of_point = [
        level for level, count in enumerate(num_points) for _ in range(count)
    ]
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                for point, level in enumerate(level_of_point):
                    found = sample(
                        values[level][b * heads + h], locations[b, q, h, point]
                    )
                    output[b, q, h * channels : (h + 1) * channels] += (
                        weights[b, q, h, point] * found
                    )
    return output


@pytest.fixture(params=[[3, 6, 3], [4], [2, 1]], ids=str)
def case(request):
    """Two images, three heads, five queries; maps that are not square; some points outside."""
    num_points, generator = request.param, torch.Generator().manual_seed(0)
    shapes = [(6, 9), (3, 5), (2, 2)][: len(num_points)]
    values = [
        torch.randn(2 * 3, 4, *shape, generator=generator, dtype=torch.float64)
        for shape in shapes
    ]
    locations = (
        torch.rand(
            2,
            5,
            3,
            sum(num_points),
            2,
            generator=generator,
            dtype=torch.float64,
        )
        * 1.4
        - 0.2
    )
    weights = torch.randn(
        2, 5, 3, sum(num_points), generator=generator, dtype=torch.float64
    ).softmax(-1)
    return values, locations, weights, num_points


def test_attention_equals_a_loop_over_points(case):
    torch.testing.assert_close(
        deformable_attention(*case), plain_loops(*case, bilinear)
    )


def tokens_of(values, heads):
    """Return the tokens of maps `[B * heads, c, h, w]`."""
    levels = [value.unflatten(0, (-1, heads)).flatten(3) for value in values]
    joined = torch.cat(levels, 3)  # [B, heads, c, S]
    shapes = [tuple(value.shape[2:]) for value in values]
    return LevelTokens(joined.permute(0, 3, 1, 2).flatten(2), shapes)


def test_attention_to_tokens_equals_a_loop_over_points(case):
    values, *points = case
    torch.testing.assert_close(
        attention_to_tokens(tokens_of(values, heads=3), *points),
        plain_loops(*case, bilinear),
    )


@pytest.mark.parametrize("place", [-math.inf, -1e30, 1e30, math.inf])
def test_attention_to_tokens_reads_zero_far_outside(place):
    locations = torch.tensor([place, 0.5]).view(1, 1, 1, 1, 2)
    levels = LevelTokens(torch.ones(1, 6, 4), [(2, 3)])
    found = attention_to_tokens(levels, locations, torch.ones(1, 1, 1, 1), [1])
    assert torch.equal(found, torch.zeros(1, 1, 4))


@pytest.mark.parametrize(
    ("place", "weight"), [(math.nan, 1.0), (0.5, math.nan)]
)
def test_attention_to_tokens_is_not_a_number_for_such_points_and_weights(
    place, weight
):
    locations = torch.full((1, 1, 1, 1, 2), place)
    weights = torch.full((1, 1, 1, 1), weight)
    levels = LevelTokens(torch.ones(1, 6, 4), [(2, 3)])
    found = attention_to_tokens(levels, locations, weights, [1])
    assert found.isnan().all()


def test_discrete_attention_equals_a_loop_over_points(case):
    torch.testing.assert_close(
        deformable_attention(*case, sample=sample_nearest_pixel),
        plain_loops(*case, nearest),
    )


def test_point_on_a_pixel_centre_reads_that_pixel():
    value = torch.arange(12.0).view(1, 1, 3, 4)
    location = torch.tensor([(2 + 0.5) / 4, (1 + 0.5) / 3]).view(1, 1, 1, 2)
    assert sample_bilinear(value, location).item() == pytest.approx(
        value[0, 0, 1, 2].item()
    )


def test_point_between_pixels_reads_their_mean():
    value = torch.arange(4.0).view(1, 1, 2, 2)
    assert sample_bilinear(
        value, torch.full((1, 1, 1, 2), 0.5)
    ).item() == pytest.approx(1.5)


@pytest.mark.parametrize(
    "location", [(-1.0, 0.5), (2.0, 0.5), (0.5, -1.0), (0.5, 2.0)]
)
def test_point_far_outside_reads_zero(location):
    assert (
        sample_bilinear(
            torch.ones(1, 1, 2, 2), torch.tensor(location).view(1, 1, 1, 2)
        ).item()
        == 0
    )


@pytest.mark.parametrize(
    ("location", "pixel"),
    [
        ((-1.0, 0.0), 0),
        ((2.0, 0.0), 1),
        ((0.0, 2.0), 2),
        ((9.0, 9.0), 3),
        ((0.24, 0.0), 0),
        ((0.26, 0.0), 1),
    ],
)
def test_nearest_pixel_is_clamped_to_the_map(location, pixel):
    assert (
        sample_nearest_pixel(
            torch.arange(4.0).view(1, 1, 2, 2),
            torch.tensor(location).view(1, 1, 1, 2),
        ).item()
        == pixel
    )


def test_gradients_reach_values_locations_and_weights(case):
    values, locations, weights, num_points = case
    values, locations, weights = (
        [v[:3, :2].requires_grad_() for v in values],
        locations[:1, :2].requires_grad_(),
        weights[:1, :2].requires_grad_(),
    )
    assert torch.autograd.gradcheck(
        lambda loc, w, *v: deformable_attention(list(v), loc, w, num_points),
        (locations, weights, *values),
    )


def test_gather_gives_the_same_numbers_as_grid_sample_inside_and_outside():
    torch.manual_seed(0)
    value = torch.randn(3, 5, 7, 9, dtype=torch.float64)
    locations = torch.rand(3, 11, 4, 2, dtype=torch.float64) * 1.6 - 0.3
    torch.testing.assert_close(
        sample_bilinear_by_gather(value, locations),
        sample_bilinear(value, locations),
    )
