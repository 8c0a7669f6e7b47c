"""Which detection found which object, and the score from which on detections are best believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

MATCH_IOU = 0.5
"""IoU from which on a box counts as found."""

MISSED, CROWD = -1, -2
"""In place of an object: none was found; a crowd region was, which is neither right nor wrong."""

Objects = dict[int, np.ndarray]
"""By image id, `[T, 6]`: x, y, w, h, category, and 1 for a crowd region."""


class Matches(NamedTuple):
    """Detections of all images, best score first; N of them."""

    scores: np.ndarray
    """`[N]` in 0..1."""
    categories: np.ndarray
    """`[N]`."""
    image_ids: np.ndarray
    """`[N]`."""
    found: np.ndarray
    """`[N]`: row of the object in its image's `Objects`, or `MISSED` or `CROWD`."""
    objects: dict[int, int]
    """Number of objects by category, crowd regions not counted."""

    def of_category(self, category: int) -> Matches:
        """Return the part of one category."""
        own = self.categories == category
        return Matches(
            self.scores[own],
            self.categories[own],
            self.image_ids[own],
            self.found[own],
            {category: self.objects.get(category, 0)},
        )


class OperatingPoint(NamedTuple):
    """How well detections from one score on meet objects."""

    threshold: float
    precision: float | None
    """None without detections."""
    recall: float | None
    """None without objects."""
    f1: float | None
    """None with neither."""


class OperatingCurve(NamedTuple):
    """Precision, recall and F1 at K scores: `[K]` each."""

    threshold: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def objects_of(coco_gt: Mapping[str, Any]) -> Objects:
    """Return the objects of a COCO dictionary by image id; images without any are left out."""
    rows: dict[int, list[list[float]]] = {}
    for entry in coco_gt["annotations"]:
        rows.setdefault(entry["image_id"], []).append(
            [*entry["bbox"], entry["category_id"], entry.get("iscrowd", 0)]
        )
    return {image: np.array(own, float) for image, own in rows.items()}


def match(objects: Objects, detections: Mapping[int, np.ndarray], *, same_category: bool = True) -> Matches:
    """Give each detection, best score first, the free object of its image that it overlaps most, by at least `MATCH_IOU`.

    Args:
        objects: the truth.
        detections: by image id, `[R, 6]`: x, y, w, h, score, category.
        same_category: objects of another category do not count as found.
    """
    order = {image: np.argsort(-rows[:, 4], kind="stable") for image, rows in detections.items()}
    found = {
        image: match_image(detections[image][order[image]], objects.get(image), same_category=same_category)
        for image in order
    }
    rows = np.concatenate([detections[image][order[image]] for image in order] or [np.empty((0, 6))])
    images = np.repeat(np.fromiter(order, np.int64, len(order)), [len(own) for own in order.values()])
    best = np.argsort(-rows[:, 4], kind="stable")
    categories, counts = np.unique(
        [row[4] for own in objects.values() for row in own if not row[5]], return_counts=True
    )
    return Matches(
        rows[best, 4],
        rows[best, 5].astype(np.int64),
        images[best],
        np.concatenate([*found.values(), np.empty(0, np.int64)]).astype(np.int64)[best],
        dict(zip(categories.astype(int).tolist(), counts.tolist())),
    )


def match_image(rows: np.ndarray, objects: np.ndarray | None, *, same_category: bool = True) -> np.ndarray:
    """Return for each of an image's detections, best first, the row of the object that it found, or `MISSED` or `CROWD`."""
    found = np.full(len(rows), MISSED, np.int64)
    if objects is None or not len(rows):
        return found
    crowd = objects[:, 5] > 0
    overlap = iou_xywh(rows[:, :4], objects[:, :4], crowd)
    if same_category:
        overlap *= rows[:, 5, None] == objects[None, :, 4]
    for row in np.flatnonzero((overlap >= MATCH_IOU).any(1)):  # only those that meet something: few
        best = np.where(crowd, 0, overlap[row]).argmax()
        if not crowd[best] and overlap[row, best] >= MATCH_IOU:
            found[row] = best
            overlap[:, best] = 0
        elif (overlap[row, crowd] >= MATCH_IOU).any():
            found[row] = CROWD
    return found


def operating_points(matches: Matches) -> OperatingCurve | None:
    """Return precision, recall and F1 `[K]` at each distinct score, highest first; None without objects or detections."""
    counted = matches.found != CROWD
    total = sum(matches.objects.values())
    scores, hits = matches.scores[counted], matches.found[counted] >= 0
    if not total or not len(scores):
        return None
    last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))  # of equal scores all count or none
    right = hits.cumsum()[last]
    precision, recall = right / (last + 1), right / total
    return OperatingCurve(scores[last], precision, recall, 2 * right / (last + 1 + total))


def best_operating_point(matches: Matches) -> OperatingPoint | None:
    """Return the score with the highest F1 over all boxes of `matches`; None without objects or detections."""
    points = operating_points(matches)
    if points is None:
        return None
    best = int(points.f1.argmax())
    threshold, precision, recall, f1 = (float(values[best]) for values in points)
    return OperatingPoint(threshold, precision, recall, f1)


def operating_point_at(matches: Matches, threshold: float) -> OperatingPoint:
    """Return what detections with at least a score reach; what nothing defines is None."""
    counted = (matches.scores >= threshold) & (matches.found != CROWD)
    right, found = int((matches.found[counted] >= 0).sum()), int(counted.sum())
    total = sum(matches.objects.values())
    return OperatingPoint(
        threshold,
        right / found if found else None,
        right / total if total else None,
        2 * right / (found + total) if found + total else None,
    )


def iou_xywh(one: np.ndarray, other: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Return IoUs `[N, M]` of xywh boxes; with a crowd region it is the share of the first box that lies in it, as COCO has it."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, :2] + one[:, None, 2:], other[None, :, :2] + other[None, :, 2:])
    common, own = (high - low).clip(0).prod(2), one[:, 2:].prod(1)[:, None]
    union = own + other[:, 2:].prod(1)[None] - common
    return common / np.maximum(union if crowd is None else np.where(crowd, own, union), 1e-9)
