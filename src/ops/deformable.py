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
    """Do what `deformable_attention` does by one sum of rows, which is faster on a CPU.

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
    batch, queries, heads, points, _ = locations.shape
    per_point = (batch, queries, heads, points)
    width, height, start = _levels_of_points(levels, per_point, num_points)
    half = locations.new_tensor(-0.5)
    x = torch.addcmul(half, locations[..., 0], width)
    y = torch.addcmul(half, locations[..., 1], height)
    column, left, right = _neighbours(x, width)
    row, upper, lower = _neighbours(y, height)
    upper, lower = upper * weights, lower * weights
    shares = (upper * left, upper * right, lower * left, lower * right)
    first = torch.addcmul(column, row, width).long() * heads + start
    below = first + width.long() * heads
    rows = torch.cat((first, first + heads, below, below + heads), -1)
    table = levels.tokens.reshape(-1, levels.tokens.shape[-1] // heads)
    # rows of pixels outside have the share 0, and may be anywhere in the table
    sums = F.embedding_bag(
        rows.clamp_(0, len(table) - 1).flatten(0, 2),
        table,
        per_sample_weights=torch.cat(shares, -1).flatten(0, 2),
        mode="sum",
    )
    return sums.view(batch, queries, -1)


def _levels_of_points(
    levels: LevelTokens,
    per_point: tuple[int, int, int, int],
    num_points: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is known of the level of each point.

    Operations on tensors of full size are faster than those that repeat a value for each point.

    Args:
        levels: tokens of all levels.
        per_point: shape of the results, (B, Q, heads, S).
        num_points: points of each level.

    Returns:
        Width and height of the level's map, and the row of its first pixel in the table of
        `attention_to_tokens`, which has `heads` rows for each token.
    """
    tokens, shapes = levels
    batch, _, heads, _ = per_point
    sizes = []
    starts = []
    start = 0
    for (height, width), count in zip(shapes, num_points):
        sizes += [(width, height)] * count
        starts += [start] * count
        start += height * width
    image = torch.arange(batch).view(-1, 1, 1, 1) * tokens.shape[1]
    first = (image + torch.tensor(starts)) * heads  # [B, 1, 1, S]
    rows = first + torch.arange(heads)[:, None]  # [B, 1, heads, S]
    widths, heights = torch.tensor(sizes, dtype=tokens.dtype).unbind(-1)
    return (
        widths.expand(per_point).contiguous(),
        heights.expand(per_point).contiguous(),
        rows.expand(per_point).contiguous(),
    )


def _neighbours(
    places: Tensor, length: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two pixels around places on one axis.

    Args:
        places: coordinates, in pixels from the centre of the first pixel.
        length: pixels of the axis, of the same shape.

    Returns:
        Index of the pixel before each place, -1 to `length`, as a float; the shares of this pixel and of the
        next one in the value, which are 0 for pixels outside.
    """
    places = places.clamp(min=-1).minimum(length)
    before = places.floor()
    share = places - before
    first = (1 - share) * ((before >= 0) & (before < length))
    return before, first, share * (before < length - 1)
