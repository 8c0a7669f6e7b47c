"""COCO average precision over all ranks; each image is counted once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ...core.coco_metrics import METRICS
from ...core.contracts import Detections
from ...core.errors import DataError
from ...core.registry import register
from ...runtime.distributed import broadcast_object, gather_objects, is_main
from .diagnosis import diagnose
from .true_positives import (
    best_operating_point,
    match,
    objects_of,
    operating_point_at,
)

LARGEST_AREA = 1e10
"""Maximum area in square pixels; COCO does not score larger objects."""

AREAS = {
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, LARGEST_AREA),
}
"""COCO's size classes: minimum and maximum area in square pixels, both inclusive."""


@register()
class CocoEvaluator:
    """Collect detections by image id and score them with faster-coco-eval."""

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
        """Detections by image id, `[R, 6]`: x, y, w, h, score, category; of all ranks after `synchronize`."""
        return self._detections

    def reset(self) -> None:
        """Discard all detections."""
        self._detections: dict[int, np.ndarray] = {}

    def update(self, predictions: Mapping[int, Detections]) -> None:
        """Add the detections of some images, by image id; an image that was added before is skipped."""
        for image_id, found in predictions.items():
            if image_id in self._detections:
                continue
            boxes = found["boxes"].double().cpu().numpy()
            scores = found["scores"].double().cpu().numpy()
            labels = found["labels"].double().cpu().numpy()
            starts = boxes[:, :2]
            extents = boxes[:, 2:] - starts
            rows = np.column_stack([starts, extents, scores, labels])
            self._detections[image_id] = (
                rows  # [R, 6]: x, y, w, h, score, category
            )

    def synchronize(self) -> None:
        """Merge the detections of all ranks."""
        merged: dict[int, np.ndarray] = {}
        for part in gather_objects(self._detections):
            merged = part | merged
        self._detections = merged

    def summarize(self) -> dict[str, Any]:
        """Score the collected detections.

        Returns:
            The metrics in `METRICS`; `F1`, the maximum over all score thresholds at IoU 0.5, with
            `F1_threshold`, `F1_precision` and `F1_recall` at this threshold; and by category id
            `AP_of_class`, and `precision_of_class` and `recall_of_class` at this threshold. Undefined values
            are None. The result is the same on every rank.
        """
        return broadcast_object(self._score() if is_main() else None)

    def _score(self) -> dict[str, Any]:
        from faster_coco_eval import COCO, COCOeval_faster

        number_of = {}
        for number, image in enumerate(self.coco_gt["images"], 1):
            number_of[image["id"]] = number
        foreign = [i for i in self._detections if i not in number_of]
        if foreign:
            raise DataError(
                f"detections for image ids that are not in the annotation file: {foreign[:20]}"
            )
        truth = COCO(self._numbered_truth(number_of), print_function=_silent)
        detections = []
        for image_id, rows in sorted(self._detections.items()):
            number = number_of[image_id]
            for *box, score, category in rows.tolist():
                record = {
                    "image_id": number,
                    "bbox": box,
                    "score": score,
                    "category_id": int(category),
                }
                detections.append(record)
        results = truth.loadRes(detections)
        run = COCOeval_faster(truth, results, "bbox", print_function=_silent)
        run.evaluate()
        run.accumulate()
        run.summarize()
        precision = run.eval["precision"][
            :, :, :, 0, -1
        ]  # [IoU, recall, category]
        metrics = dict(zip(METRICS, map(_defined, run.stats)))
        by_class = {}
        for column, category in enumerate(run.params.catIds):
            values = precision[:, :, column]
            known = values[values > -1]
            average = _defined(known.mean()) if known.size else None
            by_class[int(category)] = average
        return metrics | self._operating_point() | {"AP_of_class": by_class}

    def _numbered_truth(self, number_of: Mapping[int, int]) -> dict[str, Any]:
        """Return a copy of the ground truth whose images and annotations are numbered from 1.

        The library modifies its input, and it stores ids as floating-point numbers, so large ids would
        collide.
        """
        annotations = []
        for number, entry in enumerate(self.coco_gt["annotations"], 1):
            image_id = number_of[entry["image_id"]]
            annotations.append({**entry, "id": number, "image_id": image_id})
        images = []
        for image in self.coco_gt["images"]:
            images.append({**image, "id": number_of[image["id"]]})
        return {**self.coco_gt, "images": images, "annotations": annotations}

    def _operating_point(self) -> dict[str, Any]:
        matches = match(objects_of(self.coco_gt), self._detections)
        best = best_operating_point(matches)
        if best is None:
            return {"F1": 0.0}
        precisions = {}
        recalls = {}
        for category in sorted(matches.objects):
            point = operating_point_at(
                matches.of_category(category), best.threshold
            )
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


def _defined(value: float) -> float | None:
    """Return a value of the library, or None for its -1, which means undefined."""
    return None if value < 0 else float(value)


def _silent(*_: object) -> None:
    """Discard the progress messages of the library."""
