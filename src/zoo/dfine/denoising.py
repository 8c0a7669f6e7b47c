"""Denoising queries: noised ground truth that the decoder learns to restore (DINO, Zhang et al., 2023,
section 3.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...ops.activations import inverse_sigmoid
from ...ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh


class DenoisingQueries(NamedTuple):
    """Queries that the decoder puts before its matching queries; D' = 2 * groups * G_max, laid out as groups
    of [G_max positives, G_max negatives]."""

    content: Tensor
    """`[B, D', D]`, embedded labels."""
    reference_unact: Tensor
    """`[B, D', 4]`, noised boxes before the sigmoid."""
    mask: Tensor
    """`[D' + Q, D' + Q]`, True where a query (row) must not see another."""
    positive_idx: list[Tensor]
    """For each image, the positions of its positive queries, group by group: `[groups * T_i]`."""
    num_groups: int
    chosen: list[Tensor | None]
    """For each image, which of its objects are denoised, `[num_denoising]` on the CPU; None for all."""


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
    """Noise the targets of a batch.

    Args:
        targets: for each image `labels [T]` and `boxes [T, 4]` (cxcywh, 0..1).
        embedding: `[C + 1, D]`; row C is padding.
        num_classes: C.
        num_queries: matching queries that will follow.
        num_denoising: positives an image, shared among the groups. Of an image with more objects as many are
            drawn, so that a crowded image does not set the memory of a run.
        label_noise_ratio: half of this fraction of the labels is drawn again.
        box_noise_scale: a positive's edges move by up to this many half sizes, a negative's by up to twice
            that.

    Returns:
        The queries; with zero length, but still tied to the embedding, if no image has an object.
    """
    device = embedding.weight.device
    targets, chosen = _limit_objects(targets, num_denoising, device)
    counts = [len(target["labels"]) for target in targets]
    most = max(counts, default=0)
    groups = max(1, num_denoising // most) if most else 0
    length = 2 * groups * most
    labels = pad_sequence(
        [t["labels"].int() for t in targets],
        batch_first=True,
        padding_value=num_classes,
    ).tile(1, 2 * groups)
    boxes = (
        pad_sequence([t["boxes"] for t in targets], batch_first=True)
        .view(len(targets), most, 4)
        .tile(1, 2 * groups, 1)
    )
    negative = (torch.arange(length, device=device) // max(most, 1)) % 2 == 1  # [D']

    labels = _noise_labels(labels, num_classes, label_noise_ratio)
    boxes = _noise_boxes(boxes, negative, box_noise_scale)
    positive_idx = [
        (
            torch.arange(groups, device=device)[:, None] * 2 * most
            + torch.arange(n, device=device)
        ).flatten()
        for n in counts
    ]
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
    """Return targets with at most `most` random objects an image, and which these are; None for all of an
    image."""
    kept: list[dict[str, Tensor]] = []
    chosen: list[Tensor | None] = []
    for target in targets:
        count = len(target["labels"])
        few = torch.randperm(count)[:most].sort().values if count > most else None
        chosen.append(few)
        kept.append(
            target
            if few is None
            else {name: target[name][few.to(device)] for name in ("labels", "boxes")}
        )
    return kept, chosen


def _noise_labels(labels: Tensor, num_classes: int, ratio: float) -> Tensor:
    flip = (torch.rand_like(labels, dtype=torch.float32) < 0.5 * ratio) & (
        labels != num_classes
    )
    return torch.where(flip, torch.randint_like(labels, 0, num_classes), labels)


def _noise_boxes(boxes: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Move every edge; the draws come in the official order: signs, then magnitudes."""
    half_sizes = boxes[..., 2:].repeat(1, 1, 2) * 0.5
    sign = torch.randint_like(boxes, 0, 2) * 2 - 1
    magnitude = torch.rand_like(boxes) + negative[None, :, None]
    corners = cxcywh_to_xyxy(boxes) + sign * magnitude * half_sizes * scale
    return xyxy_to_cxcywh(corners.clamp(0, 1)).abs()  # opposite edges may have crossed


def _visibility_mask(
    length: int, num_queries: int, group_length: int, device: torch.device
) -> Tensor:
    """Matching queries see no denoising query; a denoising query sees its own group and the matching
    queries."""
    position = torch.arange(length + num_queries, device=device)
    group = torch.where(position < length, position // max(group_length, 1), -1)
    return (group[None] != group[:, None]) & (position[None] < length)
