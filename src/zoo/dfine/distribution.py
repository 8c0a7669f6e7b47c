"""Box edges as distributions over bins: fine-grained distribution refinement (D-FINE, Peng et al., 2024,
section 4).

An edge's distance from a reference box is the expectation of a weighting sequence W under a softmax over K
bins; K = `reg_max` + 1. Distances are in units of the reference box's size divided by `reg_scale`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.boxes import xyxy_to_cxcywh


def weighting_sequence(reg_max: int, up: Tensor, reg_scale: Tensor) -> Tensor:
    """Return W, `[reg_max + 1]` float32: odd-symmetric, fine near zero, coarse towards both ends.

    Args:
        reg_max: number of bins less one; even.
        up: `[1]`, half the largest regular distance in units of `reg_scale`.
        reg_scale: `[1]`.

    Source: D-FINE, equation 5.
    """
    bound = up.abs().float() * reg_scale.abs().float()  # [1]
    step = (bound + 1) ** (2 / (reg_max - 2))
    rising = step ** torch.arange(1, reg_max // 2, device=bound.device) - 1
    return torch.cat(
        [-2 * bound, -rising.flip(0), torch.zeros_like(bound), rising, 2 * bound]
    )


def expected_distances(corners: Tensor, weights: Tensor) -> Tensor:
    """Return the distances of the four edges, `[..., 4]`, from logits `[..., 4 * K]` and W `[K]`."""
    probabilities = F.softmax(corners.unflatten(-1, (4, weights.numel())), dim=-1)
    return F.linear(probabilities, weights[None]).squeeze(-1)


def distance_to_box(
    reference_cxcywh: Tensor, distances: Tensor, reg_scale: Tensor | float
) -> Tensor:
    """Move the edges of reference boxes outwards by distances.

    Args:
        reference_cxcywh: `[..., 4]` in 0..1.
        distances: `[..., 4]`, left, top, right, bottom.
        reg_scale: R; a distance d moves an edge to (R/2 + d) * size / R from the centre.

    Returns:
        `[..., 4]` cxcywh, not clamped.
    """
    scale = reg_scale.abs() if isinstance(reg_scale, Tensor) else abs(reg_scale)
    centre = reference_cxcywh[..., :2]
    unit = reference_cxcywh[..., 2:] / scale
    low = centre - (0.5 * scale + distances[..., :2]) * unit
    high = centre + (0.5 * scale + distances[..., 2:]) * unit
    return xyxy_to_cxcywh(torch.cat([low, high], -1))


class BinTargets(NamedTuple):
    """For each edge, the bin at or below its distance and the weights of that bin and the next; each
    `[M, 4]`."""

    left_bin: Tensor
    left_weight: Tensor
    right_weight: Tensor


def box_to_bins(
    reference_cxcywh: Tensor,
    boxes_xyxy: Tensor,
    weights: Tensor,
    reg_scale: Tensor | float,
) -> BinTargets:
    """Return the bins between which the edges of target boxes fall, seen from reference boxes.

    Args:
        reference_cxcywh: `[M, 4]` in 0..1.
        boxes_xyxy: `[M, 4]` in 0..1.
        weights: W, `[K]`.
        reg_scale: R.

    Source: D-FINE, equation 6; distances outside W count as its end.
    """
    scale = reg_scale.abs() if isinstance(reg_scale, Tensor) else abs(reg_scale)
    centre = reference_cxcywh[..., :2]
    unit = reference_cxcywh[..., 2:] / scale + 1e-16
    distances = (
        torch.cat([centre - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - centre], -1)
        / torch.cat([unit, unit], -1)
        - 0.5 * scale
    )
    last = weights.numel() - 1
    below = torch.searchsorted(weights, distances.contiguous(), right=True) - 1
    inside = below.clamp(0, last - 1)
    to_left = (distances - weights[inside]).abs()
    to_right = (weights[inside + 1] - distances).abs()
    right = to_left / (to_left + to_right)
    right = torch.where(below < 0, 0.0, torch.where(below >= last, 1.0, right))
    return BinTargets(inside, 1 - right, right)
