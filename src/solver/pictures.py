"""Draw the pictures of a run: augmented training images, and detections in a few validation images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.contracts import Target
from ..core.counts import counted
from ..core.detection_data import DetectionData, Picture
from ..detection.captions import with_caption
from ..detection.drawing import DrawnObjects, draw_at_size
from ..detection.grids import BORDER, cell_sizes, join_rows
from ..detection.outcomes import crowd_rows, find_outcomes, rows_of
from ..detection.pairs import GAP, ImagePair, captioned_pair
from ..detection.thresholds import drawing_threshold

TRAINING_IMAGES = 9
TRAINING_COLUMNS = 3
VALIDATION_IMAGES = 6
VALIDATION_COLUMNS = 2
WIDTH = 320
"""Width of one of three, or of one of two pairs of, equal pictures in a row of a grid, in pixels."""

PICTURE_EPOCHS = 10
"""Pictures are drawn in the first and the last epoch, and about this many times in between."""


def has_pictures(epoch: int, epochs: int) -> bool:
    """Return whether pictures are drawn in an epoch, counted from 0."""
    return epoch % max(1, epochs // PICTURE_EPOCHS) == 0 or epoch == epochs - 1


def training_grid(
    images: Tensor, targets: list[Target], names: Mapping[int, str]
) -> Tensor:
    """Draw the first images of a batch with their boxes.

    Args:
        images: `[B, 3, H, W]` float, the input of the model; an image with values outside 0..1 is rescaled to
            0..1.
        targets: boxes cxcywh in 0..1.
        names: class names by label.

    Returns:
        `[3, h, w]` uint8.
    """
    shown = images[:TRAINING_IMAGES].cpu().float()
    height, width = images.shape[2:]
    scale = torch.tensor([width, height, width, height])
    total = _grid_width(TRAINING_COLUMNS, WIDTH)
    ratios = [width / height] * len(shown)
    rows = []
    number = 0
    for sizes in cell_sizes(ratios, TRAINING_COLUMNS, total):
        row = []
        for size in sizes:
            target = targets[number]
            centre, extent = target["boxes"].cpu().float().chunk(2, 1)
            corners = [centre - extent / 2, centre + extent / 2]
            xyxy = torch.cat(corners, 1) * scale
            objects = DrawnObjects(xyxy, target["labels"].cpu(), names)
            drawn = draw_at_size(_as_pixels(shown[number]), objects, size)
            row.append(with_caption(drawn, [[_training_caption(target)]]))
            number += 1
        rows.append(row)
    return join_rows(rows, total)


def validation_grid(
    dataset: DetectionData,
    detections: Mapping[int, Any],
    threshold: float | None,
) -> Tensor | None:
    """Draw ground truth (left) and detections (right) of a few fixed images of a data set.

    Args:
        dataset: data set that was evaluated.
        detections: detections by image id, `[R, 6]`: x, y, w, h, score, category.
        threshold: score threshold with the highest F1 in this evaluation; None if it is not known.

    Returns:
        `[3, h, w]` uint8; None if none of the images has detections or can be drawn.
    """
    minimum = drawing_threshold(threshold)
    count = min(VALIDATION_IMAGES, len(dataset))
    indices = torch.linspace(0, len(dataset) - 1, count).round().int()
    pairs = []
    for index in indices.tolist():
        rows = detections.get(dataset.image_id(index))
        picture = None if rows is None else dataset.picture(index)
        if rows is None or picture is None:
            continue
        shown = rows[rows[:, 4] >= minimum]
        pairs.append(_pair(dataset, index, picture, shown, minimum))
    if not pairs:
        return None
    total = _grid_width(VALIDATION_COLUMNS, 2 * WIDTH + GAP)
    ratios = []
    for pair in pairs:
        height, width = pair.image.shape[1:]
        ratios.append(2 * width / height)
    sizes = cell_sizes(ratios, VALIDATION_COLUMNS, total, extra_width=GAP)
    remaining = iter(pairs)
    grid = []
    for row in sizes:
        drawn = []
        for height, width in row:
            size = (height, max(1, width // 2))
            drawn.append(captioned_pair(next(remaining), size))
        grid.append(drawn)
    return join_rows(grid, total)


def _pair(
    dataset: DetectionData,
    index: int,
    picture: Picture,
    rows: np.ndarray,
    threshold: float,
) -> ImagePair:
    """Compare the shown detections of an image, `[R, 6]`, with its objects."""
    names = dataset.label_names
    labels_of_classes = dataset.label_of_category.tolist()
    label_of_id = dict(zip(dataset.detection_ids, labels_of_classes))
    detected = rows.copy()
    detected[:, 5] = [label_of_id.get(int(row[5]), int(row[5])) for row in rows]
    objects = rows_of(
        picture.boxes, picture.labels, np.zeros(len(picture.labels))
    )
    crowds = crowd_rows(dataset, index, labels_of_classes)
    outcomes = find_outcomes(detected, np.concatenate([objects, crowds]), names)
    truth = DrawnObjects(picture.boxes, picture.labels, names)
    name = dataset.image_name(index)
    return ImagePair(picture.image, truth, outcomes, name, threshold)


def _training_caption(target: Target) -> str:
    """Return the image id, if it is known, and the number of boxes."""
    count = len(target["labels"])
    boxes = counted(count, "box", "boxes")
    if "image_id" not in target:
        return boxes
    return f"image id {int(target['image_id'])}: {boxes}"


def _as_pixels(image: Tensor) -> Tensor:
    """Return an image `[3, H, W]` float as uint8; values outside 0..1 are rescaled to 0..1."""
    low = min(0.0, float(image.min()))
    high = max(1.0, float(image.max()))
    return ((image - low) / (high - low) * 255).round().to(torch.uint8)


def _grid_width(columns: int, width: int) -> int:
    """Return the width in pixels of a grid whose columns have a width."""
    return columns * (width + BORDER) + BORDER
