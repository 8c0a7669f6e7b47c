"""Pictures of a run: augmented images as the model gets them, and what it finds in a few validation images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid

from ..core.contracts import DetectionData, Target
from ..detection.drawing import DrawnObjects, draw_boxes, draw_pair, side_by_side

TRAINING_IMAGES, VALIDATION_IMAGES = 9, 6
WIDTH = 320
"""Pixels that a picture in a grid is wide."""

SHOWN_SHARE = 10
"""Pictures are made in the first epoch, in the last, and about so many times between."""

DEFAULT_THRESHOLD = 0.4
"""Least score that is drawn as long as no F1 tells a better one."""


def has_pictures(epoch: int, epochs: int) -> bool:
    """Return whether images are shown in an epoch of a run, counted from 0."""
    return epoch % max(1, epochs // SHOWN_SHARE) == 0 or epoch == epochs - 1


def training_grid(images: Tensor, targets: list[Target], names: Mapping[int, str]) -> Tensor:
    """Draw the first images of a batch with their boxes.

    Args:
        images: `[B, 3, H, W]` float, as the model gets them; values outside 0..1 are stretched to it for each image.
        targets: boxes cxcywh in 0..1.
        names: class names by label.

    Returns:
        `[3, h, w]` uint8.
    """
    height, width = images.shape[2:]
    pictures = []
    for image, target in zip(images[:TRAINING_IMAGES].cpu().float(), targets):
        low, high = min(0.0, float(image.min())), max(1.0, float(image.max()))
        pixels = ((image - low) / (high - low) * 255).round().to(torch.uint8)
        centre, size = target["boxes"].cpu().float().chunk(2, 1)
        xyxy = torch.cat([centre - size / 2, centre + size / 2], 1) * torch.tensor(
            [width, height, width, height]
        )
        pictures.append(_fitted(draw_boxes(pixels, xyxy, target["labels"].cpu(), names)))
    return _grid(pictures, columns=3)


def validation_grid(
    dataset: DetectionData, detections: Mapping[int, Any], threshold: float | None
) -> Tensor | None:
    """Draw the truth and, right of it, what was found, for images spread evenly over a data set: always the same ones.

    Args:
        dataset: what was evaluated.
        detections: by image id, `[R, 6]`: x, y, w, h, score, category.
        threshold: least score that is drawn; None for 0.4.

    Returns:
        `[3, h, w]` uint8; None if nothing was found in any of the images, nor could have been.
    """
    pictures = []
    for index in (
        torch.linspace(0, len(dataset) - 1, min(VALIDATION_IMAGES, len(dataset))).round().int().tolist()
    ):
        rows = detections.get(dataset.image_id(index))
        picture = None if rows is None else dataset.picture(index)
        if rows is None or picture is None:
            continue
        shown = rows[rows[:, 4] >= (DEFAULT_THRESHOLD if threshold is None else threshold)]
        truth = DrawnObjects(picture.boxes, picture.labels, dataset.label_names)
        pair = draw_pair(picture.image, truth, DrawnObjects.of_rows(shown, dataset.detection_names))
        pictures.append(side_by_side([_fitted(drawn) for drawn in pair]))
    return _grid(pictures, columns=2) if pictures else None


def _fitted(picture: Tensor) -> Tensor:
    """Bring a picture to the width of a grid."""
    height = max(1, round(picture.shape[1] * WIDTH / picture.shape[2]))
    return F.interpolate(picture[None], (height, WIDTH), mode="bilinear", antialias=True)[0]


def _grid(pictures: list[Tensor], columns: int) -> Tensor:
    """Lay pictures of any heights in rows, white below the shorter ones."""
    height = max(picture.shape[1] for picture in pictures)
    even = [F.pad(picture, (0, 0, 0, height - picture.shape[1]), value=255) for picture in pictures]
    return make_grid(torch.stack(even), nrow=columns, padding=4, pad_value=255)
