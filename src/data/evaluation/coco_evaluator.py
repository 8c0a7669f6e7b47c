"""COCO average precision over all ranks; each image is counted once.

The rank that holds detections matches them with objects, and rank 0 receives the results as a few arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ...core.coco_metrics import METRICS
from ...core.contracts import Detections
from ...core.errors import DataError
from ...core.registry import register
from ...runtime.distributed import broadcast_object, gather_on_main, is_main
from .average_precision import Tables, precision_tables
from .block_matching import (
    AREAS,
    LARGEST_AREA,
    ObjectTable,
    match_detections,
    object_table,
)
from .collected_detections import CollectedDetections
from .diagnosis import diagnose
from .true_positives import (
    Matches,
    best_operating_point,
    count_objects,
    points_of_categories,
)


@register()
class CocoEvaluator:
    """Collect detections by image id and compute COCO's metrics.

    The metrics equal those of faster-coco-eval on the detections of all ranks. `metrics`, `scores_of_classes`
    and `operating_point` compute parts of the result of `summarize`, for callers who need nothing else.
    """

    metric_names = (*METRICS, "F1")

    def __init__(
        self,
        coco_gt: Mapping[str, Any],
        iou_types: Sequence[Literal["bbox"]] = ("bbox",),
    ) -> None:
        """Store the ground truth.

        Args:
            coco_gt: COCO dictionary with the category ids that detections use.
            iou_types: types to score; only boxes are supported.
        """
        self.coco_gt = coco_gt
        self.iou_types = list(iou_types)
        self.reset()

    def diagnose(self) -> str:
        """Return one sentence about why nothing was found; on rank 0, after `summarize`."""
        return diagnose(self.coco_gt, self._detections)

    def undefined_metrics(self) -> dict[str, str]:
        """Return the metrics that are not defined for these labels, each with the reason."""
        areas = []
        for entry in self.coco_gt["annotations"]:
            if not entry.get("iscrowd", 0):
                areas.append(entry["area"])
        if not areas:
            return dict.fromkeys(
                self.metric_names, "there is no object to find"
            )
        if min(areas) > LARGEST_AREA:
            reason = (
                f"all objects have an area above {LARGEST_AREA:g} square pixels, "
                "which COCO does not score"
            )
            return dict.fromkeys(METRICS, reason)
        undefined = {}
        for size, (low, high) in AREAS.items():
            if any(low <= area <= high for area in areas):
                continue
            reason = (
                f"none of the {len(areas)} objects has an area from {low:g} to {high:g} square pixels "
                f"(they have {min(areas):g} to {max(areas):g})"
            )
            undefined[f"AP_{size}"] = reason
            undefined[f"AR_{size}"] = reason
        return undefined

    @property
    def detections(self) -> Mapping[int, np.ndarray]:
        """Detections by image id, `[R, 6]`: x, y, w, h, score, category.

        They are those of this rank, and on rank 0 after `synchronize` those of all ranks.
        """
        return self._detections

    def reset(self) -> None:
        """Discard all detections."""
        self._detections = CollectedDetections()
        self._matched: np.ndarray | None = None
        self._tables: Tables | None = None

    def update(self, predictions: Mapping[int, Detections]) -> None:
        """Add the detections of some images, by image id; an image that was added before is skipped."""
        self._detections.add_predictions(predictions)
        self._matched = None
        self._tables = None

    def synchronize(self) -> None:
        """Match the detections of this rank, and merge the results of all ranks on rank 0."""
        number_of = self._number_of
        arrays = self._detections.arrays()
        matched = match_detections(arrays, self._objects, number_of)
        parts = gather_on_main((arrays, matched))
        if parts is None or len(parts) == 1:
            self._matched = matched
            return
        merged = CollectedDetections()
        kept = []
        for arrays, matched in parts:
            is_double = np.zeros(len(number_of), bool)
            for image_id in arrays.image_ids.tolist():
                if image_id in merged and image_id in number_of:
                    is_double[number_of[image_id]] = True
            kept.append(matched[~is_double[matched["image"]]])
            merged.add(arrays)
        self._detections = merged
        self._matched = np.concatenate(kept)

    def summarize(self) -> dict[str, Any]:
        """Score the collected detections.

        Returns:
            The metrics in `METRICS`; `F1`, the maximum over all score thresholds at IoU 0.5, with
            `F1_threshold`, `F1_precision` and `F1_recall` at this threshold; and by category id
            `AP_of_class`, and `precision_of_class` and `recall_of_class` at this threshold. Undefined values
            are None. The result is the same on every rank.
        """
        scores = None
        if is_main():
            by_class = {"AP_of_class": self.scores_of_classes()}
            scores = self.metrics() | self.operating_point() | by_class
        return broadcast_object(scores)

    def metrics(self) -> dict[str, float | None]:
        """Return the metrics in `METRICS`; on rank 0. Undefined ones are None.

        Raises:
            DataError: if there are detections of images that the ground truth does not contain.
        """
        return self._precision_tables().metrics()

    def scores_of_classes(self) -> dict[int, float | None]:
        """Return AP by category id; on rank 0. It is None for a category without objects."""
        return self._precision_tables().average_precision_of_classes()

    def operating_point(self) -> dict[str, Any]:
        """Return the maximum F1 and the values at its score threshold, as in `summarize`; on rank 0."""
        matched = self._all_matched()
        matches = Matches(
            matched["score"],
            matched["category"],
            matched["image"],
            matched["found"],
            count_objects(self.coco_gt),
        ).best_first()
        best = best_operating_point(matches)
        if best is None:
            return {"F1": 0.0}
        precisions = {}
        recalls = {}
        points = points_of_categories(matches, best.threshold)
        for category, point in points.items():
            precisions[category] = point.precision
            recalls[category] = point.recall
        return {
            "F1": best.f1,
            "F1_threshold": best.threshold,
            "F1_precision": best.precision,
            "F1_recall": best.recall,
            "precision_of_class": precisions,
            "recall_of_class": recalls,
        }

    @cached_property
    def _number_of(self) -> dict[int, int]:
        """Number of each image by its id, in ascending order of the ids, as COCO breaks ties of scores."""
        ids = sorted(image["id"] for image in self.coco_gt["images"])
        return {image_id: number for number, image_id in enumerate(ids)}

    @cached_property
    def _objects(self) -> ObjectTable:
        return object_table(self.coco_gt, self._number_of)

    def _all_matched(self) -> np.ndarray:
        """Return the matched detections; without `synchronize`, those of this rank."""
        number_of = self._number_of
        foreign = [i for i in self._detections if i not in number_of]
        if foreign:
            raise DataError(
                f"detections for image ids that are not in the annotation file: {foreign[:20]}"
            )
        if self._matched is None:
            self._matched = match_detections(
                self._detections.arrays(), self._objects, number_of
            )
        return self._matched

    def _precision_tables(self) -> Tables:
        matched = self._all_matched()
        if self._tables is None:
            ids = [category["id"] for category in self.coco_gt["categories"]]
            self._tables = precision_tables(
                matched, self._objects, np.unique(np.array(ids, np.int64))
            )
        return self._tables
