"""The loss terms as functions of stacked heads, each returning one raw sum a head, `[K]`.

Heads are stacked along the first axis, so that all decoder layers cost one pass. Letters: K heads, B images,
Q queries, C classes, N bins, M matched pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.boxes import cxcywh_to_xyxy, iou_and_giou
from .distribution import BinTargets

TEMPERATURE = 5.0
"""Softening of the distributions in self-distillation."""


class Matched(NamedTuple):
    """Matched pairs on the device, `[M]` int64 each."""

    head: Tensor
    image: Tensor
    query: Tensor
    target: Tensor
    """Position in the concatenated targets of the whole batch."""


def varifocal_loss(
    logits: Tensor,
    pairs: Matched,
    labels: Tensor,
    quality: Tensor,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Return the varifocal loss of each head, summed over queries and classes.

    Args:
        logits: `[K, B, Q, C]`.
        pairs: matches; `pairs.head` picks the head.
        labels: class of each pair, `[M]`.
        quality: IoU of each pair, `[M]`; the target of its class. All other targets are zero.
        alpha: weight of the zero targets.
        gamma: exponent of their focal weight.

    Source: VarifocalNet, Zhang et al., 2021, equation 2.
    """
    quality = quality.detach()
    return _QualityFocal.apply(
        logits,
        (pairs.head, pairs.image, pairs.query, labels),
        quality,
        quality,
        alpha,
        gamma,
    )


def matchability_aware_loss(
    logits: Tensor,
    pairs: Matched,
    labels: Tensor,
    quality: Tensor,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Return the matchability-aware loss of each head; arguments as in `varifocal_loss`.

    The target of a pair's class is `quality ** gamma`, and every pair counts fully: unlike the varifocal
    loss, pairs that overlap little still pull. Source: DEIM, Huang et al., 2024, equation 3.
    """
    target = quality.detach() ** gamma
    return _QualityFocal.apply(
        logits,
        (pairs.head, pairs.image, pairs.query, labels),
        target,
        torch.ones_like(target),
        alpha,
        gamma,
    )


class _QualityFocal(torch.autograd.Function):
    """Cross-entropy with soft targets at the pairs and focal weights elsewhere: the sum and its gradient in
    one sweep over the logits; the weights are constants to the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        where: tuple[Tensor, ...],
        target: Tensor,
        weight_of_pair: Tensor,
        alpha: float,
        gamma: float,
    ) -> Tensor:
        gradient = torch.empty_like(logits)
        totals = []
        for heads in _pieces(logits):
            p = torch.sigmoid(logits[heads], out=gradient[heads])
            weight = p.pow(gamma).mul_(alpha)
            p.mul_(weight)
            totals.append(weight.mul_(F.softplus(logits[heads])).sum((1, 2, 3)))
        matched = logits[where]
        p = matched.sigmoid()
        as_positive = weight_of_pair * F.binary_cross_entropy_with_logits(
            matched, target, reduction="none"
        )
        as_negative = alpha * p**gamma * F.softplus(matched)
        gradient[where] = weight_of_pair * (p - target)
        ctx.save_for_backward(gradient)
        return torch.cat(totals).index_add_(0, where[0], as_positive - as_negative)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None, None, None], None, None, None, None, None


def focal_loss(
    logits: Tensor,
    pairs: Matched,
    labels: Tensor,
    quality: Tensor,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Return the sigmoid focal loss of each head; arguments as in `varifocal_loss`, `quality` is not used.

    Source: Focal Loss for Dense Object Detection, Lin et al., 2017, equation 5.
    """
    total = ((1 - alpha) * logits.sigmoid() ** gamma * F.softplus(logits)).sum(
        (1, 2, 3)
    )
    matched = logits[pairs.head, pairs.image, pairs.query, labels]
    p = matched.sigmoid()
    as_positive = alpha * (1 - p) ** gamma * F.softplus(-matched)
    as_negative = (1 - alpha) * p**gamma * F.softplus(matched)
    return total.index_add(0, pairs.head, as_positive - as_negative)


class BoxLosses(NamedTuple):
    """Raw sums of each head, and the overlap of each pair."""

    l1: Tensor
    """`[K]`."""
    giou: Tensor
    """`[K]`."""
    iou: Tensor
    """`[K, M]`, detached."""


def box_losses(
    boxes: Tensor, targets: Tensor, weight_by: str | None = None
) -> BoxLosses:
    """Return L1 and 1 - GIoU of paired boxes.

    Args:
        boxes: `[K, M, 4]` cxcywh.
        targets: `[M, 4]` cxcywh.
        weight_by: None, or "iou" / "giou": multiply a pair's GIoU term by that value.
    """
    iou, giou = iou_and_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
    weights: dict[str | None, Tensor | float] = {
        None: 1.0,
        "iou": iou.detach(),
        "giou": giou.detach(),
    }
    weight = weights[weight_by]
    return BoxLosses(
        (boxes - targets).abs().sum((1, 2)), ((1 - giou) * weight).sum(1), iou.detach()
    )


def fine_grained_localization_loss(
    corners: Tensor, bins: BinTargets, iou: Tensor
) -> Tensor:
    """Return the FGL loss of each head: cross-entropy against the two bins around each true edge, by IoU.

    Args:
        corners: logits of matched queries, `[K, M, 4, N]`.
        bins: true edges, `[M, 4]`.
        iou: `[K, M]`, detached.

    Source: D-FINE, equation 7.
    """
    log_p = F.log_softmax(corners, dim=-1)
    left = bins.left_bin[None, ..., None].expand(len(corners), -1, -1, 1)
    nearby = log_p.gather(-1, torch.cat([left, left + 1], -1))  # [K, M, 4, 2]
    weights = (
        torch.stack([bins.left_weight, bins.right_weight], -1) * iou[..., None, None]
    )
    return -(nearby * weights).sum((1, 2, 3))


class Balance(NamedTuple):
    """Weights of matched and unmatched queries in the distillation loss."""

    positive: Tensor | float
    negative: Tensor | float


def decoupled_distillation_loss(
    corners: Tensor,
    teacher_corners: Tensor,
    trust: Tensor,
    positive: Tensor,
    balance: Balance,
) -> Tensor:
    """Return the DDF loss of each head: the last layer teaches the distributions of the others.

    Args:
        corners: students, `[K, B, Q, 4, N]`.
        teacher_corners: `[B, Q, 4, N]`, shared by all heads; gets no gradient.
        trust: weight of each query, `[K, B, Q]`; gets no gradient.
        positive: which queries are matched, `[B, Q]` bool.
        balance: from `distillation_balance`.

    Source: D-FINE, equation 8.
    """
    matched = 4 * positive.sum()
    per_positive = balance.positive / matched.clamp(min=1)
    per_negative = balance.negative / (4 * positive.numel() - matched).clamp(min=1)
    share = torch.where(positive, per_positive, per_negative) / (
        balance.positive + balance.negative
    )  # [B, Q]
    return _Distillation.apply(
        corners, teacher_corners.detach(), trust.detach() * share * TEMPERATURE**2
    )


class _Distillation(torch.autograd.Function):
    """Sum of weighted KL divergences of softened distributions; the gradient is that of cross-entropy, in
    closed form."""

    @staticmethod
    def forward(
        ctx: Any, corners: Tensor, teacher_corners: Tensor, weight: Tensor
    ) -> Tensor:
        log_teacher = F.log_softmax(teacher_corners / TEMPERATURE, dim=-1)
        p_teacher = log_teacher.exp()
        negative_entropy = log_teacher.mul_(p_teacher).sum((-2, -1))  # [B, Q]
        gradient = torch.empty_like(corners)
        totals = []
        for heads in _pieces(corners):
            log_student = F.log_softmax(corners[heads] / TEMPERATURE, dim=-1)
            torch.exp(log_student, out=gradient[heads]).sub_(p_teacher).mul_(
                (weight[heads] / TEMPERATURE)[..., None, None]
            )
            divergence = negative_entropy - log_student.mul_(p_teacher).sum((-2, -1))
            totals.append((weight[heads] * divergence).sum((1, 2)))
        ctx.save_for_backward(gradient)
        return torch.cat(totals)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None, None, None, None], None, None


def _pieces(stacked: Tensor) -> list[slice]:
    """Cut `[K, ...]` into what is worked on at a time: a head on the host, where that fits the cache, else
    everything."""
    return (
        [slice(k, k + 1) for k in range(len(stacked))]
        if stacked.device.type == "cpu"
        else [slice(None)]
    )


def distillation_balance(positive: Tensor) -> Balance:
    """Return the square roots of 8 / B times the number of matched and of unmatched edges, for
    `positive [B, Q]`."""
    scale = 8 / max(len(positive), 1)
    matched = positive.sum()
    return Balance(
        (scale * 4 * matched).sqrt(), (scale * 4 * (positive.numel() - matched)).sqrt()
    )
