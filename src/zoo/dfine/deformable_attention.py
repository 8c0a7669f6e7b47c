"""Cross-attention that reads each level at a few points around a query's box."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...ops.deformable import deformable_attention

OFFSET_SCALE = 0.5
"""Scale of offsets: an offset of `num_points` is half the size of the box."""


class MultiScaleDeformableAttention(nn.Module):
    """Deformable attention without value and output projections (RT-DETRv2, Lv et al., 2024)."""

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
        self.num_heads, self.num_points, self.discrete = (
            num_heads,
            list(num_points),
            discrete,
        )
        points = sum(num_points)
        self.register_buffer(
            "num_points_scale", torch.cat([torch.full((n,), 1 / n) for n in num_points])
        )
        self.sampling_offsets = nn.Linear(width, num_heads * points * 2)
        self.attention_weights = nn.Linear(width, num_heads * points)
        self._reset_parameters()
        if discrete:
            self.sampling_offsets.requires_grad_(False)

    def _reset_parameters(self) -> None:
        """Initialize the points of each head on a ray from the centre, with one direction per head."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (
            2 * math.pi / self.num_heads
        )
        rays = torch.stack([angles.cos(), angles.sin()], -1)
        rays = rays / rays.abs().max(-1, keepdim=True).values
        steps = torch.cat([torch.arange(1, n + 1) for n in self.num_points])
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.data = (
            rays[:, None] * steps[None, :, None]
        ).flatten()
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)

    def forward(self, query: Tensor, reference: Tensor, values: list[Tensor]) -> Tensor:
        """Gather features for each query.

        Args:
            query: `[B, Q, D]`.
            reference: boxes, `[B, Q, 4]` cxcywh in 0..1.
            values: a map per level, `[B * heads, D / heads, h, w]`; see `split_heads`.

        Returns:
            `[B, Q, D]`.
        """
        batch, queries, _ = query.shape
        offsets = self.sampling_offsets(query).view(
            batch, queries, self.num_heads, -1, 2
        )
        weights = F.softmax(
            self.attention_weights(query).view(batch, queries, self.num_heads, -1),
            dim=-1,
        )
        reach = (
            self.num_points_scale.to(query.dtype)[:, None]
            * reference[:, :, None, None, 2:]
            * OFFSET_SCALE
        )
        locations = (
            reference[:, :, None, None, :2] + offsets * reach
        )  # [B, Q, heads, S, 2]
        return deformable_attention(
            values,
            locations.to(values[0].dtype),
            weights.to(values[0].dtype),
            self.num_points,
            discrete=self.discrete,
        )


def split_heads(
    memory: Tensor, num_heads: int, shapes: list[tuple[int, int]]
) -> list[Tensor]:
    """Cut tokens `[B, sum(h*w), D]` into a map per level, `[B * heads, D / heads, h, w]`."""
    batch, _, width = memory.shape
    per_head = (
        memory.view(batch, -1, num_heads, width // num_heads)
        .permute(0, 2, 3, 1)
        .flatten(0, 1)
    )
    return [
        level.unflatten(2, shape)
        for level, shape in zip(
            per_head.split([h * w for h, w in shapes], dim=2), shapes
        )
    ]
