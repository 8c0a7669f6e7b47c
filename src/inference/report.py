"""One HTML page about an evaluation: numbers, curves, confusions and the worst images, readable without a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..core.errors import ConfigError
from ..data.evaluation.coco_evaluator import CocoEvaluator
from ..data.evaluation.true_positives import (
    best_operating_point,
    match_image,
    operating_point_at,
    operating_points,
)
from ..runtime.drawing import draw_boxes
from ..runtime.files import write_atomically
from ..runtime.log import logger
from .charts import Line, line_chart, sparkline
from .detector import Detector
from .evaluation import Evaluation, confusion_matrix, errors_of_image

TEMPLATE = Path(__file__).with_name("report.html.jinja")

SIZES = (("small", 0.0, 32.0**2), ("medium", 32.0**2, 96.0**2), ("large", 96.0**2, float("inf")))
"""COCO's sizes: name, least and largest area in pixels."""

LARGEST_MATRIX = 40
"""Classes that a confusion matrix is drawn for; of more, only the commonest confusions are listed."""

MOST_CONFUSIONS = 20
PICTURE_WIDTH = 640
"""Pixels to which pictures in the page are shrunk."""


def write_report(
    evaluation: Evaluation, detector: Detector, path: Path, *, threshold: float | None = None, worst: int = 12
) -> Path:
    """Write the page.

    Args:
        evaluation: what it is about.
        detector: whose notes stand in it.
        path: an .html file.
        threshold: least score for everything that needs one; None for that with the highest F1 on these images.
        worst: images shown, those with the most errors.

    Returns:
        `path`.
    """
    from jinja2 import Environment

    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold:g}, expected 0 to 1")
    best = best_operating_point(evaluation.matches)
    threshold = threshold if threshold is not None else best.threshold if best else detector.threshold
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    page = template.render(_content(evaluation, detector, threshold, worst))
    write_atomically(path, lambda file: file.write(page.encode(errors="backslashreplace")))
    logger.info("report: %s (%.1f MB)", path, path.stat().st_size / 1e6)
    return path


def _content(evaluation: Evaluation, detector: Detector, threshold: float, worst: int) -> dict[str, Any]:
    """Return everything that the template shows."""
    matches, dataset, names = evaluation.matches, evaluation.dataset, evaluation.names
    points, at = operating_points(matches), operating_point_at(matches, threshold)
    curves = [
        Line(names[label], part.recall, part.precision)
        for label in sorted(names)
        if (part := operating_points(matches.of_category(label))) is not None
    ]
    return {
        "weights": Path(detector.meta.get("file", "weights")).name,
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "meta": detector.meta,
        "preprocessing": str(detector.preprocessing),
        "ann_file": dataset.ann_file,
        "images": len(dataset),
        "objects": sum(matches.objects.values()),
        "metrics": {name: evaluation.metrics[name] for name in CocoEvaluator.metric_names},
        "threshold": threshold,
        "at": at,
        "f1_chart": points
        and line_chart(
            [Line(name, points.threshold, getattr(points, name)) for name in ("precision", "recall", "f1")],
            "score threshold",
            "share",
            mark=threshold,
        ),
        "pr_chart": line_chart(curves, "recall", "precision"),
        "named_curves": len(curves) <= 12,
        "classes": list(_classes(evaluation, threshold)),
        "sizes": list(_sizes(evaluation, threshold)),
        **_confusions(evaluation, threshold),
        "pictures": list(_worst_images(evaluation, threshold, worst)),
    }


def _classes(evaluation: Evaluation, threshold: float) -> Iterator[dict[str, Any]]:
    matches = evaluation.matches
    for label, name in sorted(evaluation.names.items()):
        own = matches.of_category(label)
        points, count = operating_points(own), own.objects[label]
        yield {
            "name": name,
            "objects": count,
            "ap": evaluation.metrics["AP_of_class"].get(label),
            "at": operating_point_at(own, threshold) if count else None,
            "best": best_operating_point(own),
            "curve": points
            and sparkline(Line(f"precision over recall of {name}", points.recall, points.precision)),
        }


def _sizes(evaluation: Evaluation, threshold: float) -> Iterator[dict[str, Any]]:
    """Count objects and how many of them were found, by their labelled area."""
    areas, found = [], []
    for image_id, objects in evaluation.objects.items():
        single = np.flatnonzero(objects[:, 5] == 0)
        areas.append(objects[single, 2] * objects[single, 3])
        found.append(np.isin(single, match_image(evaluation.sure(image_id, threshold), objects)))
    areas, found = np.concatenate(areas), np.concatenate(found)
    for name, low, high in SIZES:
        own = (areas >= low) & (areas < high)
        yield {
            "name": name,
            "objects": int(own.sum()),
            "found": int(found[own].sum()),
            "ap": evaluation.metrics[f"AP_{name}"],
        }


def _confusions(evaluation: Evaluation, threshold: float) -> dict[str, Any]:
    counts = confusion_matrix(evaluation, threshold)
    names = [name for _, name in sorted(evaluation.names.items())]
    rows, columns = [*names, "(nothing there)"], [*names, "(missed)"]
    wrong = counts.copy()
    np.fill_diagonal(wrong[:-1, :-1], 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    listed = [
        (rows[i], columns[j], int(wrong[i, j]))
        for i, j in zip(*np.unravel_index(order, wrong.shape))
        if wrong[i, j]
    ]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    matrix = [
        {
            "name": name,
            "cells": [
                {"count": int(c), "share": round(float(s), 3), "right": i == j}
                for j, (c, s) in enumerate(zip(counts[i], share[i]))
            ],
        }
        for i, name in enumerate(rows)
    ]
    return {
        "columns": columns,
        "matrix": matrix if len(names) <= LARGEST_MATRIX else None,
        "confusions": listed,
    }


def _worst_images(evaluation: Evaluation, threshold: float, count: int) -> Iterator[dict[str, Any]]:
    ids = evaluation.dataset.labels.image_ids.tolist()
    errors = [errors_of_image(evaluation, image_id, threshold) for image_id in ids]
    for index in sorted(range(len(ids)), key=lambda i: -sum(errors[i]))[: max(count, 0)]:
        missed, false = errors[index]
        if not missed + false:
            return
        sample, rows = evaluation.dataset.raw_sample(index), evaluation.sure(ids[index], threshold)
        xyxy = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)
        truth = draw_boxes(
            sample.image,
            torch.from_numpy(sample.boxes),
            torch.from_numpy(sample.fields["labels"]),
            evaluation.names,
        )
        guess = draw_boxes(
            sample.image,
            torch.from_numpy(xyxy),
            torch.from_numpy(rows[:, 5]).long(),
            evaluation.names,
            torch.from_numpy(rows[:, 4]),
        )
        yield {
            "name": evaluation.dataset.labels.file_name(index),
            "id": ids[index],
            "missed": missed,
            "false": false,
            "truth": _data_url(truth),
            "guess": _data_url(guess),
        }


def _data_url(picture: torch.Tensor) -> str:
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    image.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
