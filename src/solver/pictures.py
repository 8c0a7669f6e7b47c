"""Draw the pictures of a run: augmented training images, and detections in a few validation images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid

from ..core.contracts import DetectionData, Target
from ..detection.drawing import (
    DrawnObjects,
    draw_boxes,
    draw_pair,
    side_by_side,
)

TRAINING_IMAGES = 9
VALIDATION_IMAGES = 6
WIDTH = 320
"""Width of one picture in a grid, in pixels."""

PICTURE_EPOCHS = 10
"""Pictures are drawn in the first and the last epoch, and about this many times in between."""

DEFAULT_THRESHOLD = 0.4
"""Minimum score of drawn detections, as long as no threshold is known from the best F1."""


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
    height, width = images.shape[2:]
    scale = torch.tensor([width, height, width, height])
    pictures = []
    for image, target in zip(images[:TRAINING_IMAGES].cpu().float(), targets):
        low = min(0.0, float(image.min()))
        high = max(1.0, float(image.max()))
        pixels = ((image - low) / (high - low) * 255).round().to(torch.uint8)
        centre, size = target["boxes"].cpu().float().chunk(2, 1)
        xyxy = torch.cat([centre - size / 2, centre + size / 2], 1) * scale
        drawn = draw_boxes(pixels, xyxy, target["labels"].cpu(), names)
        pictures.append(_fitted(drawn))
    return _grid(pictures, columns=3)


def validation_grid(
    dataset: DetectionData,
    detections: Mapping[int, Any],
    threshold: float | None,
) -> Tensor | None:
    """Draw ground truth (left) and detections (right) of a few fixed images of a data set.

    Args:
        dataset: data set that was evaluated.
        detections: detections by image id, `[R, 6]`: x, y, w, h, score, category.
        threshold: minimum score of drawn detections; None means 0.4.

    Returns:
        `[3, h, w]` uint8; None if none of the images has detections or can be drawn.
    """
    if threshold is None:
        threshold = DEFAULT_THRESHOLD
    count = min(VALIDATION_IMAGES, len(dataset))
    indices = torch.linspace(0, len(dataset) - 1, count).round().int()
    pictures = []
    for index in indices.tolist():
        rows = detections.get(dataset.image_id(index))
        picture = None if rows is None else dataset.picture(index)
        if rows is None or picture is None:
            continue
        shown = rows[rows[:, 4] >= threshold]
        truth = DrawnObjects(picture.boxes, picture.labels, dataset.label_names)
        found = DrawnObjects.of_rows(shown, dataset.detection_names)
        pair = draw_pair(picture.image, truth, found)
        pictures.append(side_by_side([_fitted(drawn) for drawn in pair]))
    return _grid(pictures, columns=2) if pictures else None


def _fitted(picture: Tensor) -> Tensor:
    """Resize a picture to the width of a grid column."""
    height = max(1, round(picture.shape[1] * WIDTH / picture.shape[2]))
    size = (height, WIDTH)
    return F.interpolate(picture[None], size, mode="bilinear", antialias=True)[
        0
    ]


def _grid(pictures: list[Tensor], columns: int) -> Tensor:
    """Arrange pictures in rows; shorter pictures get white padding below."""
    height = max(picture.shape[1] for picture in pictures)
    padded: list[Tensor] = []
    for picture in pictures:
        missing = height - picture.shape[1]
        padded.append(F.pad(picture, (0, 0, 0, missing), value=255))
    return make_grid(
        torch.stack(padded), nrow=columns, padding=4, pad_value=255
    )
