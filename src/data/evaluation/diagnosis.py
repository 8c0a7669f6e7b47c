"""Diagnosis of zero average precision with a falling loss.

The causes are misplaced boxes, wrong labels, or scores without meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...detection.matching import MATCH_IOU, iou_xywh
from .true_positives import objects_of

BEST_OF_IMAGE = 20
"""Number of detections per image that are examined, by score."""

RARELY_OVERLAP = 0.02
"""Fraction of detections that overlap an object below which the boxes are wrong rather than the labels."""


def diagnose(
    coco_gt: Mapping[str, Any], detections: Mapping[int, np.ndarray]
) -> str:
    """Compare the best detections of each image with its objects, separately for boxes and labels.

    Args:
        coco_gt: ground truth as a COCO dictionary.
        detections: detections by image id, `[R, 6]`: x, y, w, h, score, category.

    Returns:
        One sentence for a user.
    """
    truth = objects_of(coco_gt)
    scores: list[float] = []
    overlapping = 0
    predicted: Counter[int] = Counter()
    labelled: Counter[int] = Counter()
    for image_id, rows in detections.items():
        by_score = np.argsort(-rows[:, 4])
        best = rows[by_score[:BEST_OF_IMAGE]]
        scores.extend(best[:, 4].tolist())
        if image_id not in truth or not len(best):
            continue
        objects = truth[image_id]
        overlap = iou_xywh(best[:, :4], objects[:, :4])
        nearest = overlap.argmax(1)
        fits = overlap.max(1) >= MATCH_IOU
        overlapping += int(fits.sum())
        own_labels = best[fits, 5].astype(int)
        true_labels = objects[nearest[fits], 4].astype(int)
        predicted.update(own_labels.tolist())
        labelled.update(true_labels.tolist())
    if not scores:
        return "the model gives no detections at all"
    score_range = f"scores of the best detections go from {min(scores):.3f} to {max(scores):.3f}"
    part = f"{overlapping} of the {len(scores)} best detections"
    if overlapping < RARELY_OVERLAP * len(scores):
        return (
            f"boxes do not match objects: {part} overlap one with IoU {MATCH_IOU:g}; {score_range}; "
            "compare a training picture with its boxes (xywh or xyxy, another folder, another size?), "
            "or train longer"
        )
    if not predicted.keys() & labelled.keys():
        return (
            f"boxes match objects ({part}) but labels never do: "
            f"found as category {_most(predicted)}, labelled {_most(labelled)}; "
            "compare the categories of the training and the validation file"
        )
    return (
        f"boxes match objects ({part}) and labels do, too, but {score_range}: "
        "it is too early to say, or the learning rates are too small"
    )


def _most(counter: Counter) -> str:
    return ", ".join(str(category) for category, _ in counter.most_common(3))
