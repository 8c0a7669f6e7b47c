"""Evaluate a detector on labelled images: metrics and the matches behind them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..core.contracts import Detections
from ..core.errors import ConfigError
from ..data.dataset.coco_dataset import CocoDetection
from ..data.evaluation.coco_evaluator import CocoEvaluator
from ..data.evaluation.true_positives import (
    Matches,
    Objects,
    match,
    objects_of,
)
from ..detection.class_names import find_labels
from ..detection.matching import CROWD, MISSED, match_image
from .detector import Detector
from .prediction_settings import PredictionSettings


@dataclass(frozen=True)
class Evaluation:
    """Metrics and detections of a detector on a labelled data set. Categories are labels of the detector."""

    dataset: CocoDetection
    names: dict[int, str]
    """Class names by label."""
    metrics: dict[str, Any]
    """Metrics from `CocoEvaluator.summarize`."""
    objects: Objects
    detections: dict[int, np.ndarray]
    """Detections by image id, `[R, 6]`, best first: x, y, w, h, score, label."""

    @cached_property
    def matches(self) -> Matches:
        """Detections of all images, each with its matched object."""
        return match(self.objects, self.detections)

    def detections_above(self, image_id: int, threshold: float) -> np.ndarray:
        """Return the detections of an image, `[R, 6]`, whose score is at least `threshold`."""
        rows = self.detections[image_id]
        return rows[rows[:, 4] >= threshold]


def open_labelled_images(
    detector: Detector,
    images: Path | None = None,
    annotations: Path | None = None,
) -> CocoDetection:
    """Open the evaluation data, with the detector's labels for its categories.

    Example:
        >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
        >>> dataset = open_labelled_images(detector, Path("images"), Path("annotations.json"))
        >>> len(dataset)
        8

    Args:
        detector: detector with class names and, if known, the paths of its validation data.
        images: folder of images; None uses the validation data of the training.
        annotations: COCO file of the images.

    Raises:
        ConfigError: if only one of both is given, or the configuration has no validation data.
        DataError: for faults in the file or missing images.
        CheckpointError: if the data has classes that the detector does not have.
    """
    if (images is None) != (annotations is None):
        raise ConfigError(
            "give --images and --annotations together, or neither for the validation data that the "
            "checkpoint names"
        )
    config = detector.cfg.yaml_cfg if detector.cfg else {}
    val_dataloader = config.get("val_dataloader") or {}
    settings = val_dataloader.get("dataset") or {}
    images = images or settings.get("img_folder")
    annotations = annotations or settings.get("ann_file")
    if images is None or annotations is None:
        raise ConfigError(
            "the checkpoint names no validation data; give --images and --annotations"
        )
    try:
        dataset = CocoDetection(
            str(images),
            str(annotations),
            follow_links=bool(settings.get("follow_links")),
            bit_depth=detector.bit_depth,
        )
    except ConfigError as error:
        raise ConfigError(
            f"{error}; if the data has moved, give --images and --annotations"
        ) from None
    categories = list(zip(dataset.labels.category_ids, dataset.class_names))
    weights = Path(detector.meta.get("file", "the checkpoint"))
    dataset.use_labels(
        find_labels(
            categories,
            detector.classes,
            ann_file=dataset.ann_file,
            weights=weights,
        )
    )
    dataset.check_images_exist()
    return dataset


def evaluate_detector(
    detector: Detector, dataset: CocoDetection, *, batch_size: int = 8
) -> Evaluation:
    """Detect objects in all images of a data set and compute the metrics.

    The metrics are those of `train.py --test-only`.

    Example:
        >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
        >>> dataset = open_labelled_images(detector, Path("images"), Path("annotations.json"))
        >>> evaluation = evaluate_detector(detector, dataset)
        >>> round(evaluation.metrics["AP50"], 1)
        0.5
    """
    evaluator = CocoEvaluator(dataset.ground_truth())
    detections: dict[int, np.ndarray] = {}
    ids = dataset.labels.image_ids.tolist()
    settings = PredictionSettings(threshold=0.0, batch_size=batch_size)
    bar = tqdm(range(len(dataset)), desc="images", disable=None, leave=False)
    images = (dataset.raw_sample(index).image for index in bar)
    for image_id, seen in zip(ids, detector.stream(images, settings)):
        found = seen.prediction
        tensors = Detections(
            boxes=torch.from_numpy(found.boxes),
            scores=torch.from_numpy(found.scores),
            labels=torch.from_numpy(found.labels),
        )
        evaluator.update({image_id: tensors})
        corner = found.boxes[:, :2]
        size = found.boxes[:, 2:] - corner
        rows = np.column_stack([corner, size, found.scores, found.labels])
        detections[image_id] = rows.astype(float)
    evaluator.synchronize()
    return Evaluation(
        dataset,
        dataset.label_names,
        evaluator.summarize(),
        objects_of(evaluator.coco_gt),
        detections,
    )


def confusion_matrix(evaluation: Evaluation, threshold: float) -> np.ndarray:
    """Return the confusion matrix of the classes.

    Example:
        >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
        >>> dataset = open_labelled_images(detector, Path("images"), Path("annotations.json"))
        >>> evaluation = evaluate_detector(detector, dataset)
        >>> len(evaluation.names), confusion_matrix(evaluation, threshold=0.4).shape
        (4, (5, 5))

    Args:
        evaluation: evaluation of K classes.
        threshold: minimum score of detections.

    Returns:
        `[K + 1, K + 1]` counts: rows are true classes, columns predicted ones, in the order of their labels.
        The last row is background, the last column missed objects. Objects are matched with detections of
        their own class first, then with overlapping detections of other classes.
    """
    position = {
        label: number for number, label in enumerate(sorted(evaluation.names))
    }
    counts = np.zeros((len(position) + 1, len(position) + 1), np.int64)
    for image_id in evaluation.detections:
        rows = evaluation.detections_above(image_id, threshold)
        objects = evaluation.objects.get(image_id, np.empty((0, 6)))
        found = match_image(rows, objects)
        open_objects = np.setdiff1d(np.flatnonzero(objects[:, 5] == 0), found)
        others = np.flatnonzero(found == MISSED)
        taken = match_image(
            rows[others], objects[open_objects], same_category=False
        )
        has_object = taken >= 0
        found[others[has_object]] = open_objects[taken[has_object]]
        true_class = [position[int(label)] for label in objects[:, 4]]
        for row, target in zip(rows, found):
            if target == CROWD:
                continue
            actual = -1 if target == MISSED else true_class[target]
            predicted = position.get(int(row[5]), -1)
            counts[actual, predicted] += 1
        for target in np.setdiff1d(open_objects, found):
            counts[true_class[target], -1] += 1
    return counts


def count_errors(
    evaluation: Evaluation, image_id: int, threshold: float
) -> tuple[int, int]:
    """Return the number of missed objects and of false detections in an image.

    Example:
        >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
        >>> dataset = open_labelled_images(detector, Path("images"), Path("annotations.json"))
        >>> evaluation = evaluate_detector(detector, dataset)
        >>> missed, false = count_errors(evaluation, image_id=1, threshold=1.0)
        >>> missed == len(evaluation.objects[1]), false
        (True, 0)
    """
    rows = evaluation.detections_above(image_id, threshold)
    objects = evaluation.objects.get(image_id)
    found = match_image(rows, objects)
    total = 0 if objects is None else int((objects[:, 5] == 0).sum())
    missed = total - int((found >= 0).sum())
    false = int((found == MISSED).sum())
    return missed, false
