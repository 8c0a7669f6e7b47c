"""COCO's twelve metrics from matched detections.

Precision rises only at a detection that is right. So its maximum over all later detections, which COCO reads
at 101 recalls, needs only the detections that have an object, and a count of the others before them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...core.coco_metrics import METRICS
from .block_matching import (
    ALL_THRESHOLDS,
    AREA_RANGES,
    IOU_THRESHOLDS,
    ObjectTable,
)

RECALLS = np.linspace(0.0, 1.0, 101)
"""`[101]`: recalls at which precision is read."""

LIMITS = (1, 10, 100)
"""Detections of each image and category, with the highest scores, that count for AR1, AR10 and AR100."""

UNDEFINED = -1.0
"""Value of a category without objects, as in COCO's tables."""


class Tables(NamedTuple):
    """Precision and recall of K categories; `UNDEFINED` for those without objects."""

    category_ids: np.ndarray
    """`[K]`, ascending."""
    precision: np.ndarray
    """`[10, 101, K, 4]`: by IoU threshold, recall, category and range of areas, with the last of `LIMITS`."""
    recall: np.ndarray
    """`[10, K, 4, 3]`: by IoU threshold, category, range of areas and limit of detections."""

    def metrics(self) -> dict[str, float | None]:
        """Return the metrics in `METRICS`; undefined ones are None."""
        at_50, at_75 = 0, 5
        values = [
            _mean(self.precision[:, :, :, 0]),
            _mean(self.precision[at_50, :, :, 0]),
            _mean(self.precision[at_75, :, :, 0]),
        ]
        for area in range(1, len(AREA_RANGES)):
            values.append(_mean(self.precision[:, :, :, area]))
        for limit in range(len(LIMITS)):
            values.append(_mean(self.recall[:, :, 0, limit]))
        for area in range(1, len(AREA_RANGES)):
            values.append(_mean(self.recall[:, :, area, -1]))
        return dict(zip(METRICS, values))

    def average_precision_of_classes(self) -> dict[int, float | None]:
        """Return AP by category id; None without objects."""
        averages = {}
        for column, category in enumerate(self.category_ids.tolist()):
            averages[category] = _mean(self.precision[:, :, column, 0])
        return averages


def _mean(values: np.ndarray) -> float | None:
    defined = values[values > UNDEFINED]
    return float(np.mean(defined)) if defined.size else None


def precision_tables(
    matched: np.ndarray, objects: ObjectTable, category_ids: np.ndarray
) -> Tables:
    """Return precision and recall of all categories.

    Args:
        matched: `[N]` of type `block_matching.MATCHED`, from all images, each image once.
        objects: objects of all images.
        category_ids: `[K]`, ascending; detections and objects of other categories do not count.
    """
    thresholds = len(IOU_THRESHOLDS)
    count = len(category_ids)
    areas = len(AREA_RANGES)
    precision = np.full((thresholds, len(RECALLS), count, areas), UNDEFINED)
    recall = np.full((thresholds, count, areas, len(LIMITS)), UNDEFINED)

    matched = matched[matched["rank"] < LIMITS[-1]]
    # equal scores are sorted by image, and in an image they keep their order
    order = np.lexsort(
        (matched["image"], -matched["score"], matched["category"])
    )
    sorted_ids = matched["category"][order]
    starts = np.searchsorted(sorted_ids, category_ids, "left")
    ends = np.searchsorted(sorted_ids, category_ids, "right")
    counts = ~objects.is_ignored  # [4, T]
    for column, category in enumerate(category_ids):
        own = matched[order[starts[column] : ends[column]]]
        of_category = objects.categories == category
        totals = counts[:, of_category].sum(1)
        for area, total in enumerate(totals.tolist()):
            if total == 0:
                continue
            curve, found = _precision_and_recall(
                own["hits"][:, area],
                own["ignored"][:, area],
                own["rank"],
                total,
            )
            precision[:, :, column, area] = curve
            recall[:, column, area] = found
    return Tables(category_ids, precision, recall)


def _precision_and_recall(
    hits: np.ndarray, ignored: np.ndarray, ranks: np.ndarray, total: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the precision at each recall, `[10, 101]`, and the recall of each limit, `[10, 3]`.

    Args:
        hits: `[N]` thresholds at which each detection is right; the highest score first.
        ignored: `[N]` thresholds at which it does not count.
        ranks: `[N]` ranks in the image and category.
        total: number of objects, at least 1.
    """
    varies = (hits > 0) | ((ignored > 0) & (ignored < ALL_THRESHOLDS))
    rows = np.flatnonzero(varies)
    always_wrong = ~varies & (ignored == 0)
    wrong_before = np.cumsum(always_wrong)[rows]
    bit = 1 << np.arange(len(IOU_THRESHOLDS))[:, None]
    right = (hits[rows] & bit) > 0  # [10, M]
    counted = (ignored[rows] & bit) == 0
    rights = np.cumsum(right, axis=1)
    both = np.cumsum(counted, axis=1) + wrong_before
    values = np.where(right, rights / np.maximum(both, 1), 0.0)
    best_after = np.maximum.accumulate(values[:, ::-1], axis=1)[:, ::-1]
    # recall k / total is the first that reaches a value of RECALLS
    possible = np.arange(1, total + 1) / total
    needed = np.searchsorted(possible, RECALLS, "left")  # [101], k - 1
    curve = np.zeros((len(IOU_THRESHOLDS), len(RECALLS)))
    for number, own in enumerate(right):
        of_hits = best_after[number, own]
        reached = needed < len(of_hits)
        curve[number, reached] = of_hits[needed[reached]]
    found = np.empty((len(IOU_THRESHOLDS), len(LIMITS)))
    for number, limit in enumerate(LIMITS):
        found[:, number] = right[:, ranks[rows] < limit].sum(1) / total
    return curve, found
