"""The loss terms that compare the last decoder layer with a teacher's detections.

They are separate because they have their own pairs and weights: detections take the place of objects, and
their scores weight the pairs. Letters: B images, Q queries, C classes, M matched pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.contracts import TaughtDetections
from .edge_terms import localization_sums
from .losses import Matched, soft_box_losses, soft_class_loss
from .matcher import HungarianMatcher
from .supervision import pairs_to_device


def soft_terms(
    outputs: dict[str, Any],
    taught: TaughtDetections,
    matcher: HungarianMatcher,
    weights: Mapping[str, float],
    num_bins: int,
) -> dict[str, Tensor]:
    """Compare the last decoder layer with a teacher's detections, in float32.

    Detections are matched like objects, by their most probable class. Each term is a sum over pairs, weighted
    by the teacher's score and divided by the sum of all scores. Queries without a pair have no term.

    Args:
        outputs: outputs of `DFINETransformer` in training mode.
        taught: detections of the same images.
        matcher: matcher that assigns queries to detections.
        weights: weights of the terms for objects, by name.
        num_bins: number of bins of an edge.

    Returns:
        Weighted scalars by name, as in `DFINECriterion.taught_terms`.

    Raises:
        NumericsError: if a matching cost is not finite.
    """
    logits = outputs["pred_logits"].float()
    boxes = outputs["pred_boxes"].float()
    with torch.autocast(logits.device.type, enabled=False):
        on_host = matcher.match_padded(
            logits.detach(),
            boxes.detach(),
            taught.probabilities.argmax(-1),
            taught.boxes,
            taught.counts,
        )
        (pairs,) = pairs_to_device([on_host], logits.device)
        scores = taught.scores[pairs.image, pairs.target]  # [M]
        targets = taught.boxes[pairs.image, pairs.target]  # [M, 4]
        sums = {
            "cls": soft_class_loss(
                logits[pairs.image, pairs.query],
                taught.probabilities[pairs.image, pairs.target],
                scores,
                taught.known,
            )
        }
        sums |= soft_box_losses(
            boxes[pairs.image, pairs.query], targets, scores
        )
        if "pred_corners" in outputs:
            sums["fgl"] = _soft_localization_sum(
                outputs, pairs, targets, scores, num_bins
            )
    terms = {}
    for name, value in sums.items():
        weight = 1.0
        if name != "cls":
            weight = weights.get(f"loss_{name}", 0.0)
        if weight:
            terms[f"loss_soft_{name}"] = weight * value / taught.normalizer
    return terms


def _soft_localization_sum(
    outputs: dict[str, Any],
    pairs: Matched,
    targets: Tensor,
    scores: Tensor,
    num_bins: int,
) -> Tensor:
    """Return the fine-grained localization loss of the last layer, summed over pairs."""
    corners = outputs["pred_corners"].float()
    corners = corners.unflatten(-1, (4, num_bins))[None]
    reference = outputs["ref_points"].detach().float()
    sums = localization_sums(
        corners, reference, pairs, targets, scores[None], outputs
    )
    return sums[0]
