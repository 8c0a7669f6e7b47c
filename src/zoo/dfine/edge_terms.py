"""The two terms about edge distributions: localization and self-distillation.

They are separate because they translate: the loss functions in `losses.py` know neither boxes nor pairs, but
bins and weights of queries. Letters: K heads, L decoder layers, B images,
Q queries, N bins, M matched pairs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops.boxes import cxcywh_to_xyxy
from .distribution import box_to_bins, weighting_sequence
from .losses import (
    Matched,
    decoupled_distillation_loss,
    distillation_balance,
    fine_grained_localization_loss,
)
from .supervision import Supervision, matched_queries


def localization_sums(
    corners: Tensor,
    reference: Tensor,
    pairs: Matched,
    targets: Tensor,
    iou: Tensor,
    outputs: dict[str, Any],
) -> Tensor:
    """Return the fine-grained localization loss of each decoder layer, `[L]`, summed over pairs.

    Args:
        corners: logits of the edge distributions, `[L, B, Q, 4, N]`.
        reference: boxes that distances refer to, `[B, Q, 4]` cxcywh in 0..1.
        pairs: matched pairs, the same for all layers.
        targets: true boxes of the pairs, `[M, 4]` cxcywh in 0..1.
        iou: IoU of each pair, `[K, M]` with K >= L, detached.
        outputs: outputs of `DFINETransformer`, for `up` and `reg_scale`.
    """
    up = outputs["up"].detach()
    reg_scale = outputs["reg_scale"].detach()
    bins = box_to_bins(
        reference[pairs.image, pairs.query],
        cxcywh_to_xyxy(targets),
        weighting_sequence(corners.shape[-1] - 1, up, reg_scale),
        reg_scale,
    )
    matched = corners[:, pairs.image, pairs.query]  # [L, M, 4, N]
    return fine_grained_localization_loss(matched, bins, iou[: len(corners)])


def distillation_sums(
    supervision: Supervision,
    corners: Tensor,
    teacher_corners: Tensor,
    iou: Tensor,
) -> Tensor:
    """Return the distillation loss of each decoder layer but the last, which is the teacher, `[L - 1]`.

    The weight of a matched query is the IoU of its box; that of another query is its score in the last layer.

    Args:
        supervision: the heads and their pairs.
        corners: logits of the edge distributions, `[L, B, Q, 4, N]`.
        teacher_corners: those of the last layer, `[B, Q, 4, N]`.
        iou: IoU of each pair, `[K, M]` with K >= L, detached.
    """
    stack = supervision.stack
    pairs = supervision.box_pairs
    students = len(corners) - 1
    # it is set together with teacher_corners
    assert stack.teacher_logits is not None
    confidence = stack.teacher_logits.sigmoid().amax(-1)  # [B, Q]
    trust = confidence.repeat(students, 1, 1)  # [L - 1, B, Q]
    trust[:, pairs.image, pairs.query] = iou[:students]
    positive = matched_queries(stack, pairs)
    balance = supervision.balance or distillation_balance(positive)
    return decoupled_distillation_loss(
        corners[:students], teacher_corners, trust, positive, balance
    )
