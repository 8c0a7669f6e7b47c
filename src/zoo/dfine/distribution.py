"""Box edges as distributions over bins (D-FINE, Peng et al., 2024, section 4).

The distance of an edge from a reference box is the expectation of a weighting sequence W under a softmax over
K bins; K = `reg_max` + 1. The unit of distances is the size of the reference box divided by `reg_scale`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.boxes import xyxy_to_cxcywh


def weighting_sequence(reg_max: int, up: Tensor, reg_scale: Tensor) -> Tensor:
    """Return W, `[reg_max + 1]` float32: odd-symmetric, fine near zero, coarse towards both ends.

    Args:
        reg_max: number of bins less one, an even number.
        up: largest regular distance in units of `reg_scale`, `[1]`; the two outermost bins are at twice that.
        reg_scale: scale of distances, `[1]`.

    Source: D-FINE, equation 5.
    """
    bound = up.abs().float() * reg_scale.abs().float()  # [1]
    step = (bound + 1) ** (2 / (reg_max - 2))
    rising = step ** torch.arange(1, reg_max // 2, device=bound.device) - 1
    zero = torch.zeros_like(bound)
    return torch.cat([-2 * bound, -rising.flip(0), zero, rising, 2 * bound])


def expected_distances(corners: Tensor, weights: Tensor) -> Tensor:
    """Return the distances of the four edges, `[..., 4]`, from logits `[..., 4 * K]` and W `[K]`.

    Both are float32 and stay so under autocast, where a bf16 product would move edges by up to a pixel.
    """
    with _without_autocast(corners.device.type):
        probabilities = F.softmax(
            corners.unflatten(-1, (4, weights.numel())), dim=-1
        )
        return F.linear(probabilities, weights[None]).squeeze(-1)


def _without_autocast(device_type: str) -> AbstractContextManager:
    """Return a context that disables autocast, or does nothing if it is not enabled, as in an export."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def distance_to_box(
    reference_cxcywh: Tensor, distances: Tensor, reg_scale: Tensor | float
) -> Tensor:
    """Move the edges of reference boxes outwards by distances.

    Args:
        reference_cxcywh: reference boxes, `[..., 4]` in 0..1.
        distances: distances of the left, top, right and bottom edge, `[..., 4]`.
        reg_scale: scale R. A distance d moves an edge to (R / 2 + d) * size / R from the centre.

    Returns:
        Boxes `[..., 4]` cxcywh, not clamped to the image.

    Example:
        >>> box = torch.tensor([0.5, 0.5, 0.4, 0.4])
        >>> distance_to_box(box, torch.tensor([0.0, 0.0, 1.0, 0.0]), 4.0)
        tensor([0.5500, 0.5000, 0.5000, 0.4000])
    """
    scale = reg_scale.abs() if isinstance(reg_scale, Tensor) else abs(reg_scale)
    centre = reference_cxcywh[..., :2]
    unit = reference_cxcywh[..., 2:] / scale
    low = centre - (0.5 * scale + distances[..., :2]) * unit
    high = centre + (0.5 * scale + distances[..., 2:]) * unit
    return xyxy_to_cxcywh(torch.cat([low, high], -1))


class BinTargets(NamedTuple):
    """The two bins around the distance of each edge; each field is `[M, 4]`."""

    left_bin: Tensor
    """Index of the bin at or below the distance, int64; the right bin is the next one."""
    left_weight: Tensor
    """Weight of the left bin, 0..1."""
    right_weight: Tensor
    """Weight of the right bin, 1 - left_weight."""


def box_to_bins(
    reference_cxcywh: Tensor,
    boxes_xyxy: Tensor,
    weights: Tensor,
    reg_scale: Tensor | float,
) -> BinTargets:
    """Return the bins around the distances of target boxes from reference boxes.

    Distances outside W are treated as its first or last value.

    Args:
        reference_cxcywh: reference boxes, `[M, 4]` in 0..1.
        boxes_xyxy: target boxes, `[M, 4]` in 0..1.
        weights: weighting sequence W, `[K]`.
        reg_scale: scale R, as in `distance_to_box`.

    Source: D-FINE, equation 6.
    """
    scale = reg_scale.abs() if isinstance(reg_scale, Tensor) else abs(reg_scale)
    centre = reference_cxcywh[..., :2]
    unit = reference_cxcywh[..., 2:] / scale + 1e-16
    units = torch.cat([unit, unit], -1)
    left_top = centre - boxes_xyxy[..., :2]
    right_bottom = boxes_xyxy[..., 2:] - centre
    from_centre = torch.cat([left_top, right_bottom], -1)
    distances = from_centre / units - 0.5 * scale
    last = weights.numel() - 1
    below = torch.searchsorted(weights, distances.contiguous(), right=True) - 1
    inside = below.clamp(0, last - 1)
    to_left = (distances - weights[inside]).abs()
    to_right = (weights[inside + 1] - distances).abs()
    right = to_left / (to_left + to_right)
    right = torch.where(below < 0, 0.0, torch.where(below >= last, 1.0, right))
    return BinTargets(inside, 1 - right, right)
