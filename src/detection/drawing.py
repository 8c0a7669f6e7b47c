"""Draw boxes, names and scores on pictures, and place pictures side by side."""

from __future__ import annotations

import colorsys
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from ..runtime.log import printable

LEAST_SIDE = 320
"""Side in pixels below which pictures are enlarged, so that names are readable."""

LARGEST_SIDE = 4096
"""Maximum side in pixels of enlarged pictures."""

LONGEST_NAME = 40
"""Maximum characters of a class name in a picture."""

GAP = 8
"""White pixels between two pictures side by side."""


class DrawnObjects(NamedTuple):
    """T objects to draw on one image."""

    boxes_xyxy: Tensor
    """`[T, 4]`, pixels of the image."""
    labels: Tensor
    """`[T]` int64, keys of `names`."""
    names: Mapping[int, str]
    """Class names by label; an unknown label is shown as its number."""
    scores: Tensor | None = None
    """`[T]` in 0..1, shown after the names; None shows no scores."""

    @classmethod
    def of_labels(
        cls,
        boxes_xyxy: np.ndarray,
        labels: np.ndarray,
        names: Mapping[int, str],
    ) -> DrawnObjects:
        """Return ground-truth objects from boxes `[T, 4]` in pixels of the image and labels `[T]` int64."""
        return cls(
            torch.from_numpy(boxes_xyxy), torch.from_numpy(labels), names
        )

    @classmethod
    def of_rows(
        cls, rows: np.ndarray, names: Mapping[int, str]
    ) -> DrawnObjects:
        """Return detections of an evaluation: rows `[T, 6]` of x, y, width, height (pixels), score, label."""
        found = torch.from_numpy(rows)
        corner = found[:, :2]
        boxes_xyxy = torch.cat([corner, corner + found[:, 2:4]], 1)
        return cls(boxes_xyxy, found[:, 5].long(), names, found[:, 4])


def draw_boxes(
    image: Tensor,
    boxes_xyxy: Tensor,
    labels: Tensor,
    names: Mapping[int, str],
    scores: Tensor | None = None,
) -> Tensor:
    """Draw boxes on an image, which is enlarged if it is small.

    Args:
        image: `[3, H, W]` uint8.
        boxes_xyxy: `[T, 4]`, pixels of `image`.
        labels: `[T]` int64, keys of `names`.
        names: class names by label; an unknown label is shown as its number.
        scores: `[T]` in 0..1, shown after the names; None shows no scores.

    Returns:
        `[3, h, w]` uint8.
    """
    wanted_factor = math.ceil(LEAST_SIDE / min(image.shape[1:]))
    largest_factor = LARGEST_SIDE // max(image.shape[1:])
    factor = max(1, min(wanted_factor, largest_factor))
    image = F.interpolate(image[None], scale_factor=float(factor))[0]
    if not len(boxes_xyxy):
        return image
    texts = []
    colours = []
    for position, label in enumerate(labels.tolist()):
        name = printable(names.get(label, str(label))[:LONGEST_NAME])
        score = "" if scores is None else f" {scores[position].item():.2f}"
        texts.append(f" {name}{score}")
        colours.append(_colour(name))
    boxes = boxes_xyxy.float() * factor
    return draw_bounding_boxes(
        image, boxes, texts, colors=colours, width=2, fill_labels=True
    )


def draw_pair(
    image: Tensor, truth: DrawnObjects, found: DrawnObjects
) -> tuple[Tensor, Tensor]:
    """Draw the ground truth and the predictions of one image on two pictures of equal size.

    Args:
        image: `[3, H, W]` uint8.
        truth: ground-truth objects.
        found: predictions to show.

    Returns:
        Two pictures `[3, h, w]` uint8, the ground truth first.
    """
    return draw_boxes(image, *truth), draw_boxes(image, *found)


def side_by_side(pictures: Sequence[Tensor]) -> Tensor:
    """Join pictures `[3, H, W]` uint8 of equal height in a row, with gaps between them."""
    gap = torch.full((3, pictures[0].shape[1], GAP), 255, dtype=torch.uint8)
    parts = [pictures[0]]
    for picture in pictures[1:]:
        parts += [gap, picture]
    return torch.cat(parts, 2)


def _colour(name: str) -> tuple[int, int, int]:
    """Return a colour that depends only on the name."""
    hue = zlib.crc32(name.encode(errors="surrogatepass")) * 0.618 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.8, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)
