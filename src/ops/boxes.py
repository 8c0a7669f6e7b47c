"""Box arithmetic. Boxes are `[..., 4]`, cxcywh or xyxy as named, in the same unit for all arguments."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert centre and size to corners; negative sizes are treated as zero.

    Example:
        >>> cxcywh_to_xyxy(torch.tensor([[20.0, 30.0, 10.0, 20.0]]))
        tensor([[15., 20., 25., 40.]])
    """
    centre = boxes[..., :2]
    half = boxes[..., 2:].clamp(min=0) / 2
    return torch.cat([centre - half, centre + half], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert corners to centre and size.

    Example:
        >>> xyxy_to_cxcywh(torch.tensor([[15.0, 20.0, 25.0, 40.0]]))
        tensor([[20., 30., 10., 20.]])
    """
    low = boxes[..., :2]
    high = boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Return the areas, shape `[...]`.

    Example:
        >>> box_area(torch.tensor([[15.0, 20.0, 25.0, 40.0]]))
        tensor([200.])
    """
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

    Example:
        >>> a = torch.tensor([0.0, 0.0, 2.0, 1.0])
        >>> b = torch.tensor([1.0, 0.0, 4.0, 1.0])
        >>> iou_and_giou(a, b)
        (tensor(0.2500), tensor(0.2500))
    """
    a_low = a_xyxy[..., :2]
    a_high = a_xyxy[..., 2:]
    b_low = b_xyxy[..., :2]
    b_high = b_xyxy[..., 2:]
    overlap = torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)
    overlap = overlap.clamp(min=0)
    hull = torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)
    intersection = overlap[..., 0] * overlap[..., 1]
    hull_area = hull[..., 0] * hull[..., 1]
    union = box_area(a_xyxy) + box_area(b_xyxy) - intersection
    iou = intersection / union
    return iou, iou - (hull_area - union) / hull_area


def box_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the IoU of broadcast pairs of boxes, 0..1; see `iou_and_giou` for the shapes.

    Example:
        >>> box_iou(torch.tensor([0.0, 0.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 4.0, 1.0]))
        tensor(0.2500)
    """
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    overlap = (high - low).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = box_area(a_xyxy) + box_area(b_xyxy) - intersection
    return intersection / union


def pairwise_l1_and_giou(
    a_cxcywh: Tensor, b_cxcywh: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the L1 distance and the GIoU of all pairs: `[n, A, 4]` and `[n, B, 4]` give two `[n, A, B]`.

    It computes the same numbers as `iou_and_giou`, but coordinate by coordinate on contiguous rows and in
    place. Use it for many pairs without gradients.

    Example:
        >>> boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0]]])
        >>> pairwise_l1_and_giou(boxes, boxes)
        (tensor([[[0.]]]), tensor([[[1.]]]))
    """

    l1 = a_cxcywh.new_zeros(())
    for a, b in _coordinate_pairs(a_cxcywh, b_cxcywh):
        l1 = l1 + (a - b).abs_()
    a_xyxy = cxcywh_to_xyxy(a_cxcywh)
    b_xyxy = cxcywh_to_xyxy(b_cxcywh)
    left, top, right, bottom = _coordinate_pairs(a_xyxy, b_xyxy)
    intersection, hull = _overlap_and_hull(left, right)
    overlap_y, hull_y = _overlap_and_hull(top, bottom)
    intersection.mul_(overlap_y)
    hull.mul_(hull_y)
    areas = box_area(a_xyxy)[..., None] + box_area(b_xyxy)[:, None]
    union = areas.sub_(intersection)
    iou = intersection.div_(union)
    empty_share = hull.sub(union).div_(hull)
    return l1, iou.sub_(empty_share)


def _coordinate_pairs(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the four coordinates of boxes `[n, A, 4]` and `[n, B, 4]`, as `[n, A, 1]` and `[n, 1, B]`."""
    rows = b.transpose(1, 2).contiguous()
    return [(a[..., None, i], rows[:, None, i]) for i in range(4)]


def _overlap_and_hull(
    low: tuple[Tensor, Tensor], high: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the overlap (0 if apart) and the hull of intervals along one axis, both `[n, A, B]`."""
    overlap = torch.minimum(*high).sub_(torch.maximum(*low)).clamp_(min=0)
    hull = torch.maximum(*high).sub_(torch.minimum(*low))
    return overlap, hull
