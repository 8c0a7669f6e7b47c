"""COCO average precision over all ranks, each image counted once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ...core.contracts import Detections
from ...core.errors import DataError
from ...core.registry import register
from ...runtime.distributed import broadcast_object, gather_objects, is_main
from .diagnosis import diagnose
from .true_positives import best_operating_point, match, objects_of, operating_point_at

METRICS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
"""COCO's twelve numbers in their order; None where there is nothing to find."""

LARGEST_AREA = 1e10
"""Square pixels: COCO does not score objects with a larger area."""

AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, LARGEST_AREA)}
"""COCO's sizes of objects: smallest and largest area in square pixels, both included."""


@register()
class CocoEvaluator:
    """Collects detections by image id and scores them with faster-coco-eval."""

    metric_names = (*METRICS, "F1")

    def __init__(self, coco_gt: Mapping[str, Any], iou_types: Sequence[Literal["bbox"]] = ("bbox",)) -> None:
        """Store the truth.

        Args:
            coco_gt: a COCO dictionary whose category ids are those that detections carry.
            iou_types: what to score; boxes are all that this detector gives.
        """
        self.coco_gt = coco_gt
        self.iou_types = list(iou_types)
        self.reset()

    def diagnose(self) -> str:
        """Tell in a sentence why nothing was found; on rank 0, after `summarize`."""
        return diagnose(self.coco_gt, self._detections)

    def undefined_metrics(self) -> dict[str, str]:
        """Return the metrics that these labels cannot define, each with the reason; before anything is scored."""
        areas = [entry["area"] for entry in self.coco_gt["annotations"] if not entry.get("iscrowd", 0)]
        if not areas:
            return dict.fromkeys(self.metric_names, "there is no object to find")
        if min(areas) > LARGEST_AREA:
            reason = (
                f"all objects have an area above {LARGEST_AREA:g} square pixels, which COCO does not score"
            )
            return dict.fromkeys(METRICS, reason)
        return {
            name: f"none of the {len(areas)} objects has an area from {low:g} to {high:g} square pixels "
            f"(they have {min(areas):g} to {max(areas):g})"
            for size, (low, high) in AREAS.items()
            if not any(low <= area <= high for area in areas)
            for name in (f"AP_{size}", f"AR_{size}")
        }

    @property
    def detections(self) -> Mapping[int, np.ndarray]:
        """What was collected, by image id: `[R, 6]`, x, y, w, h, score, category; after `synchronize` of all ranks."""
        return self._detections

    def reset(self) -> None:
        """Forget all detections."""
        self._detections: dict[int, np.ndarray] = {}

    def update(self, predictions: Mapping[int, Detections]) -> None:
        """Take the detections of some images, by image id; an image that came before is not counted again."""
        for image_id, found in predictions.items():
            if image_id in self._detections:
                continue
            boxes, scores, labels = (
                found[key].double().cpu().numpy() for key in ("boxes", "scores", "labels")
            )
            rows = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores, labels])
            self._detections[image_id] = rows  # [R, 6]: x, y, w, h, score, category

    def synchronize(self) -> None:
        """Bring the detections of all ranks together."""
        merged: dict[int, np.ndarray] = {}
        for part in gather_objects(self._detections):
            merged = part | merged
        self._detections = merged

    def summarize(self) -> dict[str, Any]:
        """Score what was collected.

        Returns:
            The numbers of `METRICS`; `F1`, the highest over all scores at IoU 0.5, with `F1_threshold`, `F1_precision` and
            `F1_recall` there; by category id `AP_of_class`, and `precision_of_class` and `recall_of_class` from that
            threshold on. What the labels or detections do not define is None. The same on every rank.
        """
        return broadcast_object(self._score() if is_main() else None)

    def _score(self) -> dict[str, Any]:
        from faster_coco_eval import COCO, COCOeval_faster

        number_of = {image["id"]: number for number, image in enumerate(self.coco_gt["images"], 1)}
        if foreign := [i for i in self._detections if i not in number_of]:
            raise DataError(f"detections for image ids that the annotation file has not: {foreign[:20]}")
        truth = COCO(self._numbered_truth(number_of), print_function=_silent)
        detections = [
            {"image_id": number_of[image_id], "bbox": row[:4], "score": row[4], "category_id": int(row[5])}
            for image_id, rows in sorted(self._detections.items())
            for row in rows.tolist()
        ]
        run = COCOeval_faster(truth, truth.loadRes(detections), "bbox", print_function=_silent)
        run.evaluate()
        run.accumulate()
        run.summarize()
        precision = run.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category]
        by_class = [p[p > -1].mean() if (p > -1).any() else -1.0 for p in np.moveaxis(precision, 2, 0)]
        return (
            {name: _defined(value) for name, value in zip(METRICS, run.stats)}
            | self._operating_point()
            | {"AP_of_class": {int(c): _defined(ap) for c, ap in zip(run.params.catIds, by_class)}}
        )

    def _numbered_truth(self, number_of: Mapping[int, int]) -> dict[str, Any]:
        """Return a copy of the truth whose images and annotations are numbered from 1.

        The library writes into what it is given, and its ids are floating-point numbers: large ones would collide.
        """
        annotations = []
        for number, entry in enumerate(self.coco_gt["annotations"], 1):
            annotations.append({**entry, "id": number, "image_id": number_of[entry["image_id"]]})
        images = [{**image, "id": number_of[image["id"]]} for image in self.coco_gt["images"]]
        return {**self.coco_gt, "images": images, "annotations": annotations}

    def _operating_point(self) -> dict[str, Any]:
        matches = match(objects_of(self.coco_gt), self._detections)
        best = best_operating_point(matches)
        if best is None:
            return {"F1": 0.0}
        own = {c: operating_point_at(matches.of_category(c), best.threshold) for c in sorted(matches.objects)}
        return {
            "F1": best.f1,
            "F1_threshold": best.threshold,
            "F1_precision": best.precision,
            "F1_recall": best.recall,
            "precision_of_class": {c: point.precision for c, point in own.items()},
            "recall_of_class": {c: point.recall for c, point in own.items()},
        }


def _defined(value: float) -> float | None:
    """Return a number of the library, which writes -1 where there is nothing to find, or None."""
    return None if value < 0 else float(value)


def _silent(*_: object) -> None:
    """Swallow the library's progress messages."""
