"""Denoising queries: ground truth with noise, which the decoder learns to remove (DINO, Zhang et al., 2023).

See section 3.3 of the paper.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...ops.activations import inverse_sigmoid
from ...ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh


class DenoisingQueries(NamedTuple):
    """Queries that the decoder puts before its matching queries.

    There are D' = 2 * groups * G_max of them per image, where G_max is the maximum number of objects in an
    image. Each group consists of G_max positives, followed by G_max negatives.
    """

    content: Tensor
    """Embedded labels, `[B, D', D]`."""
    reference_unact: Tensor
    """Boxes with noise before the sigmoid, `[B, D', 4]` cxcywh."""
    mask: Tensor
    """`[D' + Q, D' + Q]`, True where a query (row) must not see another."""
    positive_idx: list[Tensor]
    """Positions of the positive queries of each image, group by group, `[groups * T_i]`."""
    num_groups: int
    """Number of groups; 0 if no image has an object."""
    chosen: list[Tensor | None]
    """Indices of the denoised objects of each image, `[num_denoising]` on the CPU; None for all objects."""


def make_denoising_queries(
    targets: list[dict[str, Tensor]],
    embedding: nn.Embedding,
    *,
    num_classes: int,
    num_queries: int,
    num_denoising: int,
    label_noise_ratio: float,
    box_noise_scale: float,
) -> DenoisingQueries:
    """Add noise to the targets of a batch.

    Args:
        targets: `labels [T]` and `boxes [T, 4]` (cxcywh, 0..1) of each image.
        embedding: embedding of labels, `[C + 1, D]`; row C is padding.
        num_classes: number of classes, C.
        num_queries: number of matching queries that will follow, Q.
        num_denoising: number of positives per image, divided among the groups. From an image with more
            objects, this many are selected at random, so that one crowded image does not determine the memory
            of a run.
        label_noise_ratio: half of this fraction of the labels is replaced by random labels.
        box_noise_scale: maximum movement of a positive's edges, in half sizes of the box. Negatives move by
            up to twice as much.

    Returns:
        The queries. If no image has an object, their length is zero; the content still depends on the
        embedding.
    """
    device = embedding.weight.device
    targets, chosen = _limit_objects(targets, num_denoising, device)
    counts = [len(target["labels"]) for target in targets]
    most = max(counts, default=0)
    groups = max(1, num_denoising // most) if most else 0
    length = 2 * groups * most
    labels = pad_sequence(
        [target["labels"].int() for target in targets],
        batch_first=True,
        padding_value=num_classes,
    )  # [B, G_max]
    boxes = pad_sequence(
        [target["boxes"] for target in targets], batch_first=True
    )
    boxes = boxes.view(
        len(targets), most, 4
    )  # without objects, boxes are [B, 0]
    labels = labels.tile(1, 2 * groups)  # [B, D']
    boxes = boxes.tile(1, 2 * groups, 1)  # [B, D', 4]
    position = torch.arange(length, device=device)
    negative = (position // max(most, 1)) % 2 == 1  # [D']

    labels = _noise_labels(labels, num_classes, label_noise_ratio)
    boxes = _noise_boxes(boxes, negative, box_noise_scale)
    group_starts = torch.arange(groups, device=device)[:, None] * (2 * most)
    positive_idx = []
    for count in counts:
        in_group = torch.arange(count, device=device)
        positive_idx.append((group_starts + in_group).flatten())
    return DenoisingQueries(
        embedding(labels),
        inverse_sigmoid(boxes),
        _visibility_mask(length, num_queries, 2 * most, device),
        positive_idx,
        groups,
        chosen,
    )


def _limit_objects(
    targets: list[dict[str, Tensor]],
    most: int,
    device: torch.device,
) -> tuple[list[dict[str, Tensor]], list[Tensor | None]]:
    """Select at most `most` random objects of each image.

    Returns:
        The targets of the selected objects, and the sorted indices of those objects for each image, on the
        CPU. None stands for an image that keeps all its objects.
    """
    kept: list[dict[str, Tensor]] = []
    chosen: list[Tensor | None] = []
    for target in targets:
        count = len(target["labels"])
        if count <= most:
            kept.append(target)
            chosen.append(None)
            continue
        few = torch.randperm(count)[:most].sort().values
        on_device = few.to(device)
        selected = {
            name: target[name][on_device] for name in ("labels", "boxes")
        }
        kept.append(selected)
        chosen.append(few)
    return kept, chosen


def _noise_labels(labels: Tensor, num_classes: int, ratio: float) -> Tensor:
    """Replace half of a fraction `ratio` of the labels `[B, D']` by random ones; padding stays."""
    drawn = torch.rand_like(labels, dtype=torch.float32) < 0.5 * ratio
    flip = drawn & (labels != num_classes)
    return torch.where(flip, torch.randint_like(labels, 0, num_classes), labels)


def _noise_boxes(boxes: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Move every edge of boxes `[B, D', 4]` at random, those of negatives by at least `scale` half sizes.

    Random numbers are drawn in the official order: signs, then magnitudes.
    """
    half_sizes = boxes[..., 2:].repeat(1, 1, 2) * 0.5
    sign = torch.randint_like(boxes, 0, 2) * 2 - 1
    magnitude = torch.rand_like(boxes) + negative[None, :, None]
    corners = cxcywh_to_xyxy(boxes) + sign * magnitude * half_sizes * scale
    return xyxy_to_cxcywh(
        corners.clamp(0, 1)
    ).abs()  # opposite edges may have crossed


def _visibility_mask(
    length: int, num_queries: int, group_length: int, device: torch.device
) -> Tensor:
    """Return the attention mask, True where a query (row) must not see another.

    Matching queries do not see denoising queries. A denoising query sees its own group and all matching
    queries.

    Args:
        length: number of denoising queries, D'.
        num_queries: number of matching queries, Q.
        group_length: number of denoising queries in a group.
        device: device of the mask.

    Returns:
        `[D' + Q, D' + Q]` bool.
    """
    position = torch.arange(length + num_queries, device=device)
    group = torch.where(position < length, position // max(group_length, 1), -1)
    return (group[None] != group[:, None]) & (position[None] < length)
