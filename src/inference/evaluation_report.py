"""Write an evaluation as a single HTML page that needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..core.counts import counted
from ..core.errors import ConfigError
from ..data.evaluation.coco_evaluator import CocoEvaluator
from ..data.evaluation.true_positives import (
    OperatingCurve,
    best_operating_point,
    operating_point_at,
    operating_points,
)
from ..detection.drawing import DrawnObjects, readable_size
from ..detection.matching import match_image
from ..detection.outcomes import find_outcomes
from ..detection.pairs import ImagePair, draw_pair
from ..runtime.files import write_atomically
from ..runtime.log import logger
from .charts import Line, line_chart, sparkline
from .detector import Detector
from .detector_evaluation import Evaluation, confusion_matrix, count_errors

TEMPLATE = Path(__file__).with_name("evaluation_report.html.jinja")

SIZES = (
    ("small", 0.0, 32.0**2),
    ("medium", 32.0**2, 96.0**2),
    ("large", 96.0**2, float("inf")),
)
"""COCO's size classes: name, minimum and maximum area in square pixels."""

MAX_MATRIX_CLASSES = 40
"""Maximum number of classes of a confusion matrix; for more, only the most frequent confusions are listed."""

MAX_CONFUSIONS = 20
MAX_PICTURE_SIDE = 640
"""Maximum side of pictures in the page, in pixels."""


def write_report(
    evaluation: Evaluation,
    detector: Detector,
    path: Path,
    *,
    threshold: float | None = None,
    worst: int = 12,
) -> Path:
    """Write the report of an evaluation.

    Example:
        >>> from src.inference.detector_evaluation import evaluate_detector, open_labelled_images
        >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
        >>> dataset = open_labelled_images(detector, Path("images"), Path("annotations.json"))
        >>> write_report(evaluate_detector(detector, dataset), detector, Path("report.html")).name
        'report.html'

    Args:
        evaluation: evaluation to report.
        detector: evaluated detector, whose metadata is shown.
        path: path of the .html file.
        threshold: minimum score of detections; None uses the detector's. The threshold with the best F1 on
            these images is shown, too.
        worst: number of images to show, those with the most errors.

    Returns:
        `path`.
    """
    from jinja2 import Environment

    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold:g}, expected 0 to 1")
    if threshold is None:
        threshold = detector.threshold
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        _page_content(evaluation, detector, threshold, worst)
    )
    content = page.encode(errors="backslashreplace")
    write_atomically(path, lambda file: file.write(content))
    logger.info("report: %s (%.1f MB)", path, path.stat().st_size / 1e6)
    return path


def _page_content(
    evaluation: Evaluation,
    detector: Detector,
    threshold: float,
    worst: int,
) -> dict[str, object]:
    """Return the values for the template."""
    matches = evaluation.matches
    dataset = evaluation.dataset
    curves = []
    for label, name in sorted(evaluation.names.items()):
        class_points = operating_points(matches.of_category(label))
        if class_points is not None:
            curves.append(
                _line(name, class_points.recall, class_points.precision)
            )
    return {
        "weights": Path(detector.meta.get("file", "weights")).name,
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "meta": detector.meta,
        "preprocessing": str(detector.preprocessing),
        "ann_file": dataset.ann_file,
        "images": counted(len(dataset), "image"),
        "objects": counted(sum(matches.objects.values()), "object"),
        "metrics": {
            name: evaluation.metrics[name]
            for name in CocoEvaluator.metric_names
        },
        "threshold": threshold,
        "best": best_operating_point(matches),
        "at": operating_point_at(matches, threshold),
        "f1_chart": _threshold_chart(operating_points(matches), threshold),
        "pr_chart": line_chart(curves, "recall", "precision"),
        "named_curves": len(curves) <= 12,
        "classes": list(_class_rows(evaluation, threshold)),
        "sizes": list(_size_rows(evaluation, threshold)),
        **_confusions(evaluation, threshold),
        "pictures": list(_worst_images(evaluation, threshold, worst)),
    }


def _threshold_chart(
    points: OperatingCurve | None, threshold: float
) -> str | None:
    """Return the chart of precision, recall and F1 over the threshold; None without detections."""
    if points is None:
        return None
    lines = []
    for name in ("precision", "recall", "f1"):
        lines.append(_line(name, points.threshold, getattr(points, name)))
    return line_chart(lines, "score threshold", "share", mark=threshold)


def _class_rows(
    evaluation: Evaluation, threshold: float
) -> Iterator[dict[str, object]]:
    matches = evaluation.matches
    for label, name in sorted(evaluation.names.items()):
        class_matches = matches.of_category(label)
        count = class_matches.objects[label]
        at_threshold = (
            operating_point_at(class_matches, threshold) if count else None
        )
        yield {
            "name": name,
            "objects": count,
            "ap": evaluation.metrics["AP_of_class"].get(label),
            "at": at_threshold,
            "best": best_operating_point(class_matches),
            "curve": _class_curve(name, operating_points(class_matches)),
        }


def _class_curve(name: str, points: OperatingCurve | None) -> str | None:
    """Return precision over recall of a class as a small line; None without detections."""
    if points is None:
        return None
    title = f"precision over recall of {name}"
    return sparkline(_line(title, points.recall, points.precision))


def _size_rows(
    evaluation: Evaluation, threshold: float
) -> Iterator[dict[str, object]]:
    """Count all and detected objects by size class, using their labelled area."""
    areas_of_images = []
    found_of_images = []
    for image_id, objects in evaluation.objects.items():
        single = np.flatnonzero(objects[:, 5] == 0)
        rows = evaluation.detections_above(image_id, threshold)
        matched = match_image(rows, objects)
        areas_of_images.append(objects[single, 2] * objects[single, 3])
        found_of_images.append(np.isin(single, matched))
    areas = np.concatenate(areas_of_images)
    is_found = np.concatenate(found_of_images)
    for name, low, high in SIZES:
        has_size = (areas >= low) & (areas < high)
        yield {
            "name": name,
            "objects": int(has_size.sum()),
            "found": int(is_found[has_size].sum()),
            "ap": evaluation.metrics[f"AP_{name}"],
        }


def _confusions(evaluation: Evaluation, threshold: float) -> dict[str, object]:
    counts = confusion_matrix(evaluation, threshold)
    names = [name for _, name in sorted(evaluation.names.items())]
    rows = [*names, "(nothing there)"]
    columns = [*names, "(missed)"]
    wrong = counts.copy()
    np.fill_diagonal(wrong[:-1, :-1], 0)
    most_frequent = np.argsort(-wrong, axis=None, kind="stable")[
        :MAX_CONFUSIONS
    ]
    listed = []
    for i, j in zip(*np.unravel_index(most_frequent, wrong.shape)):
        if wrong[i, j]:
            listed.append((rows[i], columns[j], int(wrong[i, j])))
    return {
        "columns": columns,
        "matrix": _matrix(counts, rows)
        if len(names) <= MAX_MATRIX_CLASSES
        else None,
        "confusions": listed,
    }


def _matrix(counts: np.ndarray, rows: list[str]) -> list[dict[str, object]]:
    """Return the rows of the confusion matrix for the template."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    matrix: list[dict[str, object]] = []
    for i, name in enumerate(rows):
        cells = []
        for j in range(len(rows)):
            cell_share = round(float(share[i, j]), 3)
            cells.append(
                {
                    "count": int(counts[i, j]),
                    "share": cell_share,
                    "right": i == j,
                }
            )
        matrix.append({"name": name, "cells": cells})
    return matrix


def _worst_images(
    evaluation: Evaluation, threshold: float, count: int
) -> Iterator[dict[str, object]]:
    ids = evaluation.dataset.labels.image_ids.tolist()
    errors = [count_errors(evaluation, image_id, threshold) for image_id in ids]
    most_errors_first = sorted(range(len(ids)), key=lambda i: -sum(errors[i]))
    for index in most_errors_first[: max(count, 0)]:
        missed, false = errors[index]
        if not missed + false:
            return
        names = evaluation.names
        sample = evaluation.dataset.raw_sample(index)
        rows = evaluation.detections_above(ids[index], threshold)
        outcomes = find_outcomes(
            rows, evaluation.objects.get(ids[index]), names
        )
        labels = sample.fields["labels"]
        pair = ImagePair(
            sample.image,
            DrawnObjects.of_labels(sample.boxes, labels, names),
            outcomes,
            evaluation.dataset.labels.file_name(index),
            threshold,
        )
        truth, prediction = draw_pair(pair, _picture_size(sample.image))
        yield {
            "name": pair.name,
            "id": ids[index],
            "correct": outcomes.correct,
            "missed": missed,
            "false": false,
            "truth": _data_url(truth),
            "prediction": _data_url(prediction),
        }


def _line(
    name: str, x: np.ndarray | float | None, y: np.ndarray | float | None
) -> Line:
    """Return a line through operating points, given as arrays or single numbers."""
    return Line(name, np.asarray(x), np.asarray(y))


def _picture_size(image: torch.Tensor) -> tuple[int, int]:
    """Return (height, width) of the picture of an image `[3, H, W]`: readable and not too large."""
    height, width = readable_size(image)
    factor = min(1.0, MAX_PICTURE_SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _data_url(picture: torch.Tensor) -> str:
    """Return a picture `[3, H, W]` uint8 as the address of an image in the page."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return (
        "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    )
