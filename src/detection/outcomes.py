"""Sort the detections of one image into correct and false ones, and find the missed objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..core.detection_data import DetectionData
from .drawing import DrawnObjects, LineStyle
from .matching import MISSED, match_image

CORRECT_STYLE = LineStyle.SOLID
FALSE_STYLE = LineStyle.DASHED
MISSED_STYLE = LineStyle.DOTTED


class Outcomes(NamedTuple):
    """Detections and missed objects of one image, as they are drawn."""

    drawn: DrawnObjects
    """Detections, then missed objects, each in the style of its outcome."""
    correct: int
    """Number of detections that match an object of their class."""
    false: int
    """Number of detections that match no object of their class."""
    missed: int
    """Number of objects without a detection."""


def find_outcomes(
    rows: np.ndarray, objects: np.ndarray | None, names: Mapping[int, str]
) -> Outcomes:
    """Match detections and objects as the F1 score does: same class, and an IoU of at least 0.5.

    Detections in crowd regions are neither correct nor false. They are drawn like correct ones.

    Example:
        >>> rows = np.array([[0, 0, 10, 10, 0.9, 0], [50, 50, 10, 10, 0.8, 0]])
        >>> objects = np.array([[0, 0, 10, 10, 0, 0], [20, 20, 5, 5, 0, 0]])
        >>> outcomes = find_outcomes(rows, objects, {0: "cat"})
        >>> outcomes.correct, outcomes.false, outcomes.missed
        (1, 1, 1)

    Args:
        rows: detections, `[R, 6]`: x, y, width, height (pixels), score, label.
        objects: ground truth, `[T, 6]`: x, y, width, height (pixels), label, 1 for crowds; None if empty.
        names: class names by label.
    """
    if objects is None:
        objects = np.empty((0, 6))
    best_first = np.argsort(-rows[:, 4], kind="stable")
    rows = rows[best_first]
    found = match_image(rows, objects)
    single = np.flatnonzero(objects[:, 5] == 0)
    missed = objects[np.setdiff1d(single, found)]
    without_score = np.full(len(missed), np.nan)
    missed_rows = np.column_stack([missed[:, :4], without_score, missed[:, 4]])
    styles = []
    for target in found.tolist():
        styles.append(FALSE_STYLE if target == MISSED else CORRECT_STYLE)
    styles += [MISSED_STYLE] * len(missed)
    everything = np.concatenate([rows, missed_rows])
    drawn = DrawnObjects.of_rows(everything, names)._replace(styles=styles)
    return Outcomes(
        drawn,
        correct=int((found >= 0).sum()),
        false=int((found == MISSED).sum()),
        missed=len(missed),
    )


def rows_of(
    boxes_xyxy: ArrayLike,
    scores_or_labels: ArrayLike,
    labels_or_crowds: ArrayLike,
) -> np.ndarray:
    """Return rows for `find_outcomes` from boxes `[N, 4]` xyxy and the two other columns, `[N]` each."""
    boxes = np.asarray(boxes_xyxy, float).reshape(-1, 4)
    size = boxes[:, 2:] - boxes[:, :2]
    return np.column_stack(
        [boxes[:, :2], size, scores_or_labels, labels_or_crowds]
    ).astype(float)


def crowd_rows(
    dataset: DetectionData, index: int, labels_of_classes: Sequence[int]
) -> np.ndarray:
    """Return the crowd regions and other ignored objects of an image as rows for `find_outcomes`.

    Args:
        dataset: data set of the image.
        index: position of the image.
        labels_of_classes: label of each class in `dataset.class_names`.
    """
    objects = dataset.objects(index)
    if objects.ignored is None:
        return np.empty((0, 6))
    ignored = objects.ignored.bool()
    classes = objects.labels[ignored].tolist()
    labels = [labels_of_classes[position] for position in classes]
    return rows_of(objects.boxes[ignored], labels, np.ones(len(labels)))
