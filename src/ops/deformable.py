"""Sampling of feature maps at learned points (Zhu et al., Deformable DETR, 2021, equation 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_bilinear(value: Tensor, locations: Tensor) -> Tensor:
    """Sample one level with bilinear interpolation; values outside the map are zero.

    Args:
        value: `[B*heads, c, h, w]`.
        locations: `[B*heads, Q, P, 2]`, (x, y) in 0..1 of the map.

    Returns:
        `[B*heads, c, Q, P]`.

    Example:
        >>> value = torch.tensor([[[[0.0, 2.0]]]])
        >>> sample_bilinear(value, torch.tensor([[[[0.5, 0.5]]]]))
        tensor([[[[1.]]]])
    """
    return F.grid_sample(
        value,
        2 * locations - 1,
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )


def sample_bilinear_by_gather(value: Tensor, locations: Tensor) -> Tensor:
    """Sample as `sample_bilinear` does, with gather operations; same shapes, same numbers up to rounding.

    Runtimes without a correct or fast GridSample need this form.

    Example:
        >>> value = torch.tensor([[[[0.0, 2.0]]]])
        >>> sample_bilinear_by_gather(value, torch.tensor([[[[0.5, 0.5]]]]))
        tensor([[[[1.]]]])
    """
    n, channels, height, width = value.shape
    x = locations[..., 0] * width - 0.5  # [n, Q, P]
    y = locations[..., 1] * height - 0.5
    left = x.floor()
    top = y.floor()
    right_share = x - left
    bottom_share = y - top
    flat = value.flatten(2)  # [n, c, h * w]
    total = None
    for column, column_share in (
        (left, 1 - right_share),
        (left + 1, right_share),
    ):
        for row, row_share in (
            (top, 1 - bottom_share),
            (top + 1, bottom_share),
        ):
            is_inside = (
                (column >= 0) & (column < width) & (row >= 0) & (row < height)
            )
            share = column_share * row_share * is_inside.to(value.dtype)
            # outside, any valid place is read, with the share 0
            place = torch.where(is_inside, row * width + column, 0)
            index = place.long()
            points = index.flatten(1)[:, None].expand(n, channels, -1)
            corner = flat.gather(2, points).view(n, channels, *index.shape[1:])
            part = corner * share[:, None]  # [n, c, Q, P]
            total = part if total is None else total + part
    assert total is not None
    return total


def sample_nearest_pixel(value: Tensor, locations: Tensor) -> Tensor:
    """Sample one level at the nearest pixel, clamped to the map; same shapes as `sample_bilinear`.

    Example:
        >>> value = torch.tensor([[[[0.0, 2.0]]]])
        >>> sample_nearest_pixel(value, torch.tensor([[[[0.8, 0.5]]]]))
        tensor([[[[2.]]]])
    """
    n, channels, height, width = value.shape
    size = torch.tensor([width, height], device=value.device)
    index = (locations * size + 0.5).long().clamp(min=0)
    column = index[..., 0].clamp(max=width - 1)
    row = index[..., 1].clamp(max=height - 1)
    flat = row * width + column  # [n, Q, P]
    points = flat.flatten(1)[:, None].expand(n, channels, -1)
    sampled = value.flatten(2).gather(2, points)  # [n, c, Q * P]
    return sampled.view(n, channels, *flat.shape[1:])


Sample = Callable[[Tensor, Tensor], Tensor]
"""A function that samples one level; `sample_bilinear` has its arguments."""


def deformable_attention(
    values: list[Tensor],
    locations: Tensor,
    weights: Tensor,
    num_points: list[int],
    *,
    sample: Sample = sample_bilinear,
) -> Tensor:
    """Return the sum of samples of several levels, weighted by attention.

    Args:
        values: one map per level, `[B*heads, c, h, w]`.
        locations: `[B, Q, heads, S, 2]` in 0..1, the points of level 0 first; S = sum of `num_points`.
        weights: `[B, Q, heads, S]`, softmax over S.
        num_points: points of each level.
        sample: function that samples one level.

    Returns:
        `[B, Q, heads * c]`.

    Example:
        >>> values = [torch.ones(1, 2, 4, 4), torch.ones(1, 2, 2, 2)]
        >>> locations = torch.full((1, 1, 1, 2, 2), 0.5)
        >>> deformable_attention(values, locations, torch.full((1, 1, 1, 2), 0.5), [1, 1])
        tensor([[[1., 1.]]])
    """
    batch, queries, heads, _, _ = locations.shape
    by_head = locations.permute(0, 2, 1, 3, 4).flatten(
        0, 1
    )  # [B*heads, Q, S, 2]
    per_level = by_head.split(num_points, dim=2)  # each [B*heads, Q, P, 2]
    sampled = [
        sample(value, points) for value, points in zip(values, per_level)
    ]
    samples = torch.cat(sampled, dim=-1)  # [B*heads, c, Q, S]
    weights = weights.permute(0, 2, 1, 3).flatten(0, 1)[
        :, None
    ]  # [B*heads, 1, Q, S]
    summed = (samples * weights).sum(-1)  # [B*heads, c, Q]
    return summed.view(batch, -1, queries).transpose(1, 2)


class LevelTokens(NamedTuple):
    """Tokens of all levels, for `attention_to_tokens`."""

    tokens: Tensor
    """`[B, S, heads * c]`, S = sum of h * w."""

    shapes: list[tuple[int, int]]
    """(h, w) of each level."""


def attention_to_tokens(
    levels: LevelTokens,
    locations: Tensor,
    weights: Tensor,
    num_points: list[int],
) -> Tensor:
    """Do what `deformable_attention` does by one sum of rows, which takes half of the time on a CPU.

    The four pixels around each point are rows of a table that has one row for each token and head. Their
    weights are products of the bilinear weights and of attention.

    Args:
        levels: tokens of all levels.
        locations: `[B, Q, heads, S, 2]` in 0..1, the points of level 0 first; S = sum of `num_points`.
        weights: `[B, Q, heads, S]`, softmax over S.
        num_points: points of each level.

    Returns:
        `[B, Q, heads * c]`, the same numbers up to rounding.

    Example:
        >>> levels = LevelTokens(torch.ones(1, 20, 2), [(4, 4), (2, 2)])
        >>> locations = torch.full((1, 1, 1, 2, 2), 0.5)
        >>> attention_to_tokens(levels, locations, torch.full((1, 1, 1, 2), 0.5), [1, 1])
        tensor([[[1., 1.]]])
    """
    batch, queries, heads, _, _ = locations.shape
    tokens, shapes = levels
    sizes = torch.tensor(
        [(w, h) for (h, w), n in zip(shapes, num_points) for _ in range(n)],
        dtype=locations.dtype,
    )  # [S, 2]
    pixels, shares = _pixels_around(locations, sizes)
    rows = pixels * heads + _first_rows(levels, heads, num_points)
    shares = shares * weights
    sums = F.embedding_bag(
        _by_query_and_head(rows),
        tokens.reshape(-1, tokens.shape[-1] // heads),
        per_sample_weights=_by_query_and_head(shares),
        mode="sum",
    )
    return sums.view(batch, queries, -1)


def _pixels_around(locations: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four pixels around each point, and their shares of its value.

    Args:
        locations: `[B, Q, heads, S, 2]`, (x, y) in 0..1 of the map of each point.
        sizes: (width, height) of the map of each point, `[S, 2]`.

    Returns:
        Indices of the pixels in their maps, row by row, and shares, both `[2, 2, B, Q, heads, S]`: upper and
        lower, left and right. A pixel outside is replaced by one at the edge, with the share 0.
    """
    places = torch.addcmul(locations.new_tensor(-0.5), locations, sizes)
    places = places.nan_to_num(nan=-1.0).clamp(min=-1).minimum(sizes)
    first = places.floor()
    second_share = places - first
    corners = torch.stack((first, first + 1))  # [2, B, Q, heads, S, 2]
    shares = torch.stack((1 - second_share, second_share))
    inside = corners.clamp(min=0).minimum(sizes - 1)
    shares *= inside == corners
    x, y = inside.unbind(-1)
    x_share, y_share = shares.unbind(-1)
    pixels = y[:, None] * sizes[:, 0] + x
    return pixels.long(), y_share[:, None] * x_share


def _first_rows(
    levels: LevelTokens, heads: int, num_points: list[int]
) -> Tensor:
    """Return the row of the first pixel of each point's level, `[B, 1, heads, S]`."""
    tokens, shapes = levels
    starts = []
    start = 0
    for (height, width), count in zip(shapes, num_points):
        starts += [start] * count
        start += height * width
    images = torch.arange(len(tokens)).view(-1, 1, 1, 1) * tokens.shape[1]
    pixels = images + torch.tensor(starts)  # [B, 1, 1, S]
    return pixels * heads + torch.arange(heads)[:, None]


def _by_query_and_head(x: Tensor) -> Tensor:
    """Map `[2, 2, B, Q, heads, S]` to `[B * Q * heads, S * 4]`."""
    return x.permute(2, 3, 4, 5, 0, 1).flatten(3).flatten(0, 2)
