"""Box arithmetic. Boxes are `[..., 4]`; cxcywh and xyxy as named, in any unit that all arguments share."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert centre and size to corners; negative sizes count as zero."""
    centre, half = boxes[..., :2], boxes[..., 2:].clamp(min=0) / 2
    return torch.cat([centre - half, centre + half], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Return the areas, shape `[...]`."""
    size = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return size[..., 0] * size[..., 1]


def iou_and_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalized IoU of broadcast pairs of boxes.

    Args:
        a_xyxy: `[..., 4]` corners.
        b_xyxy: `[..., 4]` corners, broadcastable against `a_xyxy`; pass `a[:, None]` and `b[None]` for all
            pairs.

    Returns:
        IoU in 0..1 and GIoU in -1..1, each with the broadcast shape without its last axis.

    Source: Rezatofighi et al., Generalized Intersection over Union, 2019, algorithm 1.
    """
    overlap = (
        torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    ).clamp(min=0)
    hull = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    intersection = overlap[..., 0] * overlap[..., 1]
    hull_area = hull[..., 0] * hull[..., 1]
    union = box_area(a_xyxy) + box_area(b_xyxy) - intersection
    iou = intersection / union
    return iou, iou - (hull_area - union) / hull_area


def box_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the IoU of broadcast pairs of boxes, 0..1; see `iou_and_giou` for the shapes."""
    overlap = (
        torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    ).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    return intersection / (box_area(a_xyxy) + box_area(b_xyxy) - intersection)


def pairwise_l1_and_giou(a_cxcywh: Tensor, b_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """Return the L1 distance and the GIoU of all pairs: `[n, A, 4]` and `[n, B, 4]` give two `[n, A, B]`.

    The same numbers as `iou_and_giou`, coordinate by coordinate over contiguous rows and in place: for many
    pairs without a gradient.
    """

    def planes(boxes_a: Tensor, boxes_b: Tensor) -> list[tuple[Tensor, Tensor]]:
        rows = boxes_b.transpose(1, 2).contiguous()
        return [(boxes_a[..., None, i], rows[:, None, i]) for i in range(4)]

    def span(low: tuple[Tensor, Tensor], high: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return overlap (0 if apart) and hull along one axis."""
        overlap = torch.minimum(*high).sub_(torch.maximum(*low)).clamp_(min=0)
        return overlap, torch.maximum(*high).sub_(torch.minimum(*low))

    l1 = sum(((a - b).abs_() for a, b in planes(a_cxcywh, b_cxcywh)), start=a_cxcywh.new_zeros(()))
    a_xyxy, b_xyxy = cxcywh_to_xyxy(a_cxcywh), cxcywh_to_xyxy(b_cxcywh)
    left, top, right, bottom = planes(a_xyxy, b_xyxy)
    intersection, hull = span(left, right)
    height, hull_height = span(top, bottom)
    intersection.mul_(height)
    hull.mul_(hull_height)
    union = (box_area(a_xyxy)[..., None] + box_area(b_xyxy)[:, None]).sub_(intersection)
    return l1, intersection.div_(union).sub_(hull.sub(union).div_(hull))
