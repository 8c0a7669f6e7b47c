"""Counts of matched detections, and the score threshold with the highest F1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ...detection.matching import CROWD, match_image

Objects = dict[int, np.ndarray]
"""Objects by image id, `[T, 6]`: x, y, w, h, category, and 1 for a crowd region."""


class Matches(NamedTuple):
    """N detections of all images, with the highest score first."""

    scores: np.ndarray
    """`[N]` in 0..1."""
    categories: np.ndarray
    """`[N]`."""
    image_ids: np.ndarray
    """`[N]`."""
    found: np.ndarray
    """`[N]`: row of the object in the `Objects` of its image, or `MISSED` or `CROWD`.

    Functions that only count need no row: any value from 0 stands for an object.
    """
    objects: dict[int, int]
    """Number of objects by category, without crowd regions."""

    def best_first(self) -> Matches:
        """Return the same matches with the highest score first; equal scores keep their order."""
        best = np.argsort(-self.scores, kind="stable")
        return Matches(
            self.scores[best],
            self.categories[best],
            self.image_ids[best],
            self.found[best],
            self.objects,
        )

    def of_category(self, category: int) -> Matches:
        """Return the matches of one category."""
        own = self.categories == category
        return Matches(
            self.scores[own],
            self.categories[own],
            self.image_ids[own],
            self.found[own],
            {category: self.objects.get(category, 0)},
        )


class OperatingPoint(NamedTuple):
    """Precision, recall and F1 of the detections with at least a score."""

    threshold: float
    precision: float | None
    """None without detections."""
    recall: float | None
    """None without objects."""
    f1: float | None
    """None without detections and objects."""


class OperatingCurve(NamedTuple):
    """Precision, recall and F1 at K score thresholds: `[K]` each."""

    threshold: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def objects_of(coco_gt: Mapping[str, Any]) -> Objects:
    """Return the objects of a COCO dictionary by image id; images without objects are left out."""
    rows: dict[int, list[list[float]]] = {}
    for entry in coco_gt["annotations"]:
        row = [*entry["bbox"], entry["category_id"], entry.get("iscrowd", 0)]
        rows.setdefault(entry["image_id"], []).append(row)
    return {image: np.array(own, float) for image, own in rows.items()}


def match(
    objects: Objects,
    detections: Mapping[int, np.ndarray],
    *,
    same_category: bool = True,
) -> Matches:
    """Match each detection, in the order of scores, with the free object of its image that it overlaps most.

    The IoU must be at least `MATCH_IOU`.

    Args:
        objects: ground truth.
        detections: detections by image id, `[R, 6]`: x, y, w, h, score, category.
        same_category: match only objects of the same category.
    """
    all_rows = [np.empty((0, 6))]
    all_found = [np.empty(0, np.int64)]
    all_images = [np.empty(0, np.int64)]
    for image, unsorted in detections.items():
        rows = unsorted[np.argsort(-unsorted[:, 4], kind="stable")]
        found = match_image(
            rows, objects.get(image), same_category=same_category
        )
        all_rows.append(rows)
        all_found.append(found)
        all_images.append(np.full(len(rows), image, np.int64))
    rows = np.concatenate(all_rows)
    truth = np.concatenate([np.empty((0, 6)), *objects.values()])
    is_crowd = truth[:, 5] != 0
    categories_of_objects = truth[~is_crowd, 4].astype(int)
    categories, counts = np.unique(categories_of_objects, return_counts=True)
    return Matches(
        rows[:, 4],
        rows[:, 5].astype(np.int64),
        np.concatenate(all_images),
        np.concatenate(all_found),
        dict(zip(categories.tolist(), counts.tolist())),
    ).best_first()


def count_objects(coco_gt: Mapping[str, Any]) -> dict[int, int]:
    """Return the number of objects of a COCO dictionary by category, without crowd regions."""
    counts: Counter[int] = Counter()
    for entry in coco_gt["annotations"]:
        if not entry.get("iscrowd", 0):
            counts[entry["category_id"]] += 1
    return dict(sorted(counts.items()))


def operating_points(matches: Matches) -> OperatingCurve | None:
    """Return the curve over all distinct scores, highest first; None without objects or detections."""
    counted = matches.found != CROWD
    total = sum(matches.objects.values())
    scores = matches.scores[counted]
    hits = matches.found[counted] >= 0
    if not total or not len(scores):
        return None
    # equal scores count together: a threshold is the last of them
    is_last = np.append(scores[1:] < scores[:-1], True)
    last = np.flatnonzero(is_last)
    right = hits.cumsum()[last]
    found = last + 1
    return OperatingCurve(
        threshold=scores[last],
        precision=right / found,
        recall=right / total,
        f1=2 * right / (found + total),
    )


def best_operating_point(matches: Matches) -> OperatingPoint | None:
    """Return the score with the highest F1 over all boxes; None without objects or detections."""
    points = operating_points(matches)
    if points is None:
        return None
    best = int(points.f1.argmax())
    threshold, precision, recall, f1 = (
        float(values[best]) for values in points
    )
    return OperatingPoint(threshold, precision, recall, f1)


def operating_point_at(matches: Matches, threshold: float) -> OperatingPoint:
    """Return precision, recall and F1 of the detections with at least a score; undefined values are None."""
    counted = (matches.scores >= threshold) & (matches.found != CROWD)
    right = int((matches.found[counted] >= 0).sum())
    found = int(counted.sum())
    total = sum(matches.objects.values())
    return _point(threshold, right, found, total)


def points_of_categories(
    matches: Matches, threshold: float
) -> dict[int, OperatingPoint]:
    """Return the operating point of each category with objects, by category id."""
    counted = (matches.scores >= threshold) & (matches.found != CROWD)
    ids = np.array(sorted(matches.objects), np.int64)
    own = counted & np.isin(matches.categories, ids)
    columns = np.searchsorted(ids, matches.categories[own])
    is_right = matches.found[own] >= 0
    found = np.bincount(columns, minlength=len(ids))
    right = np.bincount(columns[is_right], minlength=len(ids))
    points = {}
    for column, category in enumerate(ids.tolist()):
        points[category] = _point(
            threshold,
            int(right[column]),
            int(found[column]),
            matches.objects[category],
        )
    return points


def _point(
    threshold: float, right: int, found: int, total: int
) -> OperatingPoint:
    return OperatingPoint(
        threshold,
        right / found if found else None,
        right / total if total else None,
        2 * right / (found + total) if found + total else None,
    )
