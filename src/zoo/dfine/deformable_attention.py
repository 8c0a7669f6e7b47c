"""Cross-attention that reads each level at a few points around a query's box."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...ops.cpu_inference import is_cpu_inference
from ...ops.deformable import (
    LevelTokens,
    Sample,
    attention_to_tokens,
    deformable_attention,
    sample_bilinear,
    sample_bilinear_by_gather,
    sample_nearest_pixel,
)

OFFSET_SCALE = 0.5
"""Scale of offsets: an offset of `num_points` moves a point by half the size of the box."""


class MultiScaleDeformableAttention(nn.Module):
    """Deformable attention without projections of values and output (RT-DETRv2, Lv et al., 2024)."""

    num_points_scale: Tensor

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_points: Sequence[int],
        *,
        discrete: bool = False,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(
                f"decoder width {width} is not a multiple of nhead {num_heads}"
            )
        self.num_heads = num_heads
        self.num_points = list(num_points)
        self.discrete = discrete
        self._sample: Sample = (
            sample_nearest_pixel if discrete else sample_bilinear
        )
        points = sum(num_points)
        scales = [torch.full((count,), 1 / count) for count in num_points]
        self.register_buffer("num_points_scale", torch.cat(scales))
        self.sampling_offsets = nn.Linear(width, num_heads * points * 2)
        self.attention_weights = nn.Linear(width, num_heads * points)
        self._reset_parameters()
        if discrete:
            self.sampling_offsets.requires_grad_(False)

    def _reset_parameters(self) -> None:
        """Initialize the points of each head on a ray from the centre, with one direction per head."""
        turn = 2 * math.pi / self.num_heads
        angles = torch.arange(self.num_heads, dtype=torch.float32) * turn
        rays = torch.stack([angles.cos(), angles.sin()], -1)
        rays = rays / rays.abs().max(-1, keepdim=True).values
        steps = torch.cat(
            [torch.arange(1, count + 1) for count in self.num_points]
        )
        offsets = rays[:, None] * steps[None, :, None]  # [heads, S, 2]
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.data = offsets.flatten()
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        values: list[Tensor] | LevelTokens,
    ) -> Tensor:
        """Gather features for each query.

        Args:
            query: queries, `[B, Q, D]`.
            reference: boxes of the queries, `[B, Q, 4]` cxcywh in 0..1.
            values: maps or tokens of the levels, from `values_of`.

        Returns:
            `[B, Q, D]`.
        """
        batch, queries, _ = query.shape
        by_head = (batch, queries, self.num_heads, -1)
        offsets = self.sampling_offsets(query).view(
            *by_head, 2
        )  # [B, Q, heads, S, 2]
        scores = self.attention_weights(query).view(by_head)
        weights = F.softmax(scores, dim=-1)  # [B, Q, heads, S]
        centre = reference[:, :, None, None, :2]
        size = reference[:, :, None, None, 2:]
        point_scale = self.num_points_scale.to(query.dtype)[:, None]
        locations = centre + offsets * (point_scale * size * OFFSET_SCALE)
        if isinstance(values, LevelTokens):
            return attention_to_tokens(
                values,
                locations.to(values.tokens.dtype),
                weights.to(values.tokens.dtype),
                self.num_points,
            )
        return deformable_attention(
            values,
            locations.to(values[0].dtype),
            weights.to(values[0].dtype),
            self.num_points,
            sample=self._sample,
        )

    def values_of(
        self, memory: Tensor, shapes: list[tuple[int, int]]
    ) -> list[Tensor] | LevelTokens:
        """Return what `forward` samples from; layers of equal settings can share it.

        Args:
            memory: tokens of all levels, `[B, S, D]`, S = sum of h * w.
            shapes: (h, w) of each level.

        Returns:
            The tokens for bilinear sampling on a CPU without gradients, else the maps of `split_heads`.
        """
        if is_cpu_inference(memory) and self._sample is sample_bilinear:
            return LevelTokens(memory.contiguous(), shapes)
        return split_heads(memory, self.num_heads, shapes)

    def sample_by_gather(self) -> None:
        """Sample with gather operations from now on, as the nearest pixel always is."""
        if not self.discrete:
            self._sample = sample_bilinear_by_gather


def split_heads(
    memory: Tensor, num_heads: int, shapes: list[tuple[int, int]]
) -> list[Tensor]:
    """Split tokens into one map per level, with one channel group per head.

    Args:
        memory: tokens of all levels, `[B, S, D]`, S = sum of h * w.
        num_heads: number of attention heads, a divisor of D.
        shapes: (h, w) of each level.

    Returns:
        One map per level, `[B * heads, D / heads, h, w]`.
    """
    batch, _, width = memory.shape
    tokens = memory.view(batch, -1, num_heads, width // num_heads)
    channels_first = tokens.permute(0, 2, 3, 1).flatten(0, 1)
    lengths = [height * width for height, width in shapes]
    levels = channels_first.split(lengths, dim=2)
    return [level.unflatten(2, shape) for level, shape in zip(levels, shapes)]
