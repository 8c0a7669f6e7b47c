"""The loss terms as functions of stacked heads. Each returns one sum per head, `[K]`, not yet normalized.

Heads are stacked along the first axis, so that one pass computes the term of all decoder layers. Letters: K
heads, B images, Q queries, C classes, N bins, M matched pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.boxes import cxcywh_to_xyxy, iou_and_giou
from .distribution import BinTargets

TEMPERATURE = 5.0
"""Divisor of the logits in self-distillation, which softens the distributions."""


class Matched(NamedTuple):
    """Matched pairs on the device; each field is `[M]` int64."""

    head: Tensor
    """Index of the prediction head in its stack."""
    image: Tensor
    """Index of the image in the batch."""
    query: Tensor
    """Index of the query in its image."""
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
        logits: class logits, `[K, B, Q, C]`.
        pairs: matched pairs of all heads.
        labels: class of each pair, `[M]`.
        quality: IoU of each pair, `[M]` in 0..1, the target of its class. All other targets are zero.
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

    The target of a pair's class is `quality ** gamma`, and every pair has weight 1. Unlike with the varifocal
    loss, pairs that overlap little still contribute.

    Source: DEIM, Huang et al., 2024, equation 3.
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
    """Cross-entropy with soft targets at the pairs and focal weights elsewhere, summed for each head.

    The forward pass computes the gradient together with the sum, because both need the probabilities. The
    gradient treats the weights as constants.
    """

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
        return torch.cat(totals).index_add_(
            0, where[0], as_positive - as_negative
        )

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (
            gradient * grad[:, None, None, None],
            None,
            None,
            None,
            None,
            None,
        )


def focal_loss(
    logits: Tensor,
    pairs: Matched,
    labels: Tensor,
    quality: Tensor,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Return the sigmoid focal loss of each head.

    The arguments are those of `varifocal_loss`; `quality` is not used.

    Source: Focal Loss for Dense Object Detection, Lin et al., 2017, equation 5.
    """
    weight = (1 - alpha) * logits.sigmoid() ** gamma
    total = (weight * F.softplus(logits)).sum((1, 2, 3))
    matched = logits[pairs.head, pairs.image, pairs.query, labels]
    p = matched.sigmoid()
    as_positive = alpha * (1 - p) ** gamma * F.softplus(-matched)
    as_negative = (1 - alpha) * p**gamma * F.softplus(matched)
    return total.index_add(0, pairs.head, as_positive - as_negative)


class BoxLosses(NamedTuple):
    """Sums of each head over its pairs, and the IoU of each pair."""

    l1: Tensor
    """Sum of L1 distances, `[K]`."""
    giou: Tensor
    """Sum of 1 - GIoU, weighted if asked for, `[K]`."""
    iou: Tensor
    """IoU of each pair, `[K, M]`, detached."""


def box_losses(
    boxes: Tensor, targets: Tensor, weight_by: str | None = None
) -> BoxLosses:
    """Return L1 and 1 - GIoU of paired boxes.

    Args:
        boxes: predicted boxes, `[K, M, 4]` cxcywh in 0..1.
        targets: true boxes, `[M, 4]` cxcywh in 0..1.
        weight_by: "iou" or "giou" multiplies the GIoU term of a pair by that value; None does not.
    """
    iou, giou = iou_and_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
    l1_sum = (boxes - targets).abs().sum((1, 2))
    giou_sum = _giou_losses(iou, giou, weight_by).sum(1)
    return BoxLosses(l1_sum, giou_sum, iou.detach())


def box_losses_by_head(
    boxes: Tensor,
    targets: Tensor,
    head: Tensor,
    num_heads: int,
    weight_by: str | None = None,
) -> BoxLosses:
    """Return the losses of `box_losses` if each head has pairs of its own.

    Args:
        boxes: predicted boxes of all pairs, `[M, 4]` cxcywh in 0..1.
        targets: true boxes, `[M, 4]` cxcywh in 0..1.
        head: head of each pair, `[M]` int64, 0..`num_heads` - 1.
        num_heads: number of heads, K.
        weight_by: as in `box_losses`.

    Returns:
        Sums `[K]`, and the IoU of each pair, `[M]`.
    """
    iou, giou = iou_and_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
    l1 = (boxes - targets).abs().sum(-1)
    zeros = boxes.new_zeros(num_heads)
    l1_sum = zeros.index_add(0, head, l1)
    giou_sum = zeros.index_add(0, head, _giou_losses(iou, giou, weight_by))
    return BoxLosses(l1_sum, giou_sum, iou.detach())


def _giou_losses(iou: Tensor, giou: Tensor, weight_by: str | None) -> Tensor:
    """Return 1 - GIoU of each pair, weighted if asked for."""
    weights: dict[str | None, Tensor | float] = {
        None: 1.0,
        "iou": iou.detach(),
        "giou": giou.detach(),
    }
    return (1 - giou) * weights[weight_by]


def fine_grained_localization_loss(
    corners: Tensor, bins: BinTargets, iou: Tensor
) -> Tensor:
    """Return the fine-grained localization (FGL) loss of each head.

    It is the cross-entropy with the two bins around each true edge, weighted by the IoU of the pair.

    Args:
        corners: logits of matched queries, `[K, M, 4, N]`.
        bins: true edges, `[M, 4]`.
        iou: IoU of each pair, `[K, M]`, detached.

    Source: D-FINE, equation 7.
    """
    log_p = F.log_softmax(corners, dim=-1)
    left = bins.left_bin[None, ..., None].expand(len(corners), -1, -1, 1)
    nearby = log_p.gather(-1, torch.cat([left, left + 1], -1))  # [K, M, 4, 2]
    shares = torch.stack([bins.left_weight, bins.right_weight], -1)  # [M, 4, 2]
    weights = shares * iou[..., None, None]  # [K, M, 4, 2]
    return -(nearby * weights).sum((1, 2, 3))


def soft_class_loss(
    logits: Tensor, probabilities: Tensor, scores: Tensor, known: Tensor | None
) -> Tensor:
    """Return the cross-entropy with a teacher's class probabilities, a sum over pairs weighted by score.

    Args:
        logits: class logits of the student, `[M, C]`.
        probabilities: class probabilities of the teacher, `[M, C]`.
        scores: weight of each pair, `[M]` in 0..1.
        known: 1 for classes that the teacher has, 0 for others, `[C]`; None if it has all.
    """
    losses = F.binary_cross_entropy_with_logits(
        logits, probabilities, reduction="none"
    )
    if known is not None:
        losses = losses * known
    return (losses.sum(-1) * scores).sum()


def soft_box_losses(
    boxes: Tensor, targets: Tensor, scores: Tensor
) -> dict[str, Tensor]:
    """Return L1 (`bbox`) and 1 - GIoU (`giou`), sums over pairs weighted by score.

    Args:
        boxes: boxes of the student, `[M, 4]` cxcywh in 0..1.
        targets: boxes of the teacher, `[M, 4]` cxcywh in 0..1.
        scores: weight of each pair, `[M]` in 0..1.
    """
    _, giou = iou_and_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
    distances = (boxes - targets).abs().sum(-1)
    return {
        "bbox": (distances * scores).sum(),
        "giou": ((1 - giou) * scores).sum(),
    }


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
    """Return the decoupled distillation (DDF) loss of each head.

    The last layer teaches its edge distributions to the other layers.

    Args:
        corners: logits of the other layers, `[K, B, Q, 4, N]`.
        teacher_corners: logits of the last layer, `[B, Q, 4, N]`; they receive no gradient.
        trust: weight of each query, `[K, B, Q]`; it receives no gradient.
        positive: True for matched queries, `[B, Q]` bool.
        balance: weights from `distillation_balance`.

    Source: D-FINE, equation 8.
    """
    matched = 4 * positive.sum()
    unmatched = 4 * positive.numel() - matched
    per_positive = balance.positive / matched.clamp(min=1)
    per_negative = balance.negative / unmatched.clamp(min=1)
    share = torch.where(positive, per_positive, per_negative)  # [B, Q]
    share = share / (balance.positive + balance.negative)
    weight = trust.detach() * share * TEMPERATURE**2
    return _Distillation.apply(corners, teacher_corners.detach(), weight)


class _Distillation(torch.autograd.Function):
    """Sum of weighted KL divergences of softened distributions for each head.

    The gradient is computed in closed form, as that of the cross-entropy.
    """

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
            p_student = torch.exp(log_student, out=gradient[heads])
            scale = weight[heads] / TEMPERATURE
            p_student.sub_(p_teacher).mul_(
                scale[..., None, None]
            )  # now the gradient
            cross = log_student.mul_(p_teacher).sum((-2, -1))
            divergence = negative_entropy - cross
            totals.append((weight[heads] * divergence).sum((1, 2)))
        ctx.save_for_backward(gradient)
        return torch.cat(totals)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None, None, None, None], None, None


def _pieces(stacked: Tensor) -> list[slice]:
    """Return slices of `[K, ...]` to process one after another: single heads on a CPU, else all at once.

    A single head fits the cache of a CPU.
    """
    if stacked.device.type != "cpu":
        return [slice(None)]
    return [slice(k, k + 1) for k in range(len(stacked))]


def distillation_balance(positive: Tensor) -> Balance:
    """Return the square roots of 8 / B times the numbers of matched and unmatched edges.

    Args:
        positive: True for matched queries, `[B, Q]` bool.
    """
    scale = 8 / max(len(positive), 1)
    matched = positive.sum()
    unmatched = positive.numel() - matched
    return Balance((scale * 4 * matched).sqrt(), (scale * 4 * unmatched).sqrt())
