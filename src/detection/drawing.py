"""Boxes, names and scores on pictures, and pictures beside each other."""

from __future__ import annotations

import colorsys
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
"""Smaller pictures are enlarged, so that names can be read."""

LARGEST_SIDE = 4096
"""To which pictures are enlarged at most."""

LONGEST_NAME = 40
"""Characters of a class's name that are written."""

GAP = 8
"""White pixels between pictures that stand side by side."""


class DrawnObjects(NamedTuple):
    """Objects that are drawn on one image; T of them."""

    boxes_xyxy: Tensor
    """`[T, 4]`, pixels of the image."""
    labels: Tensor
    """`[T]` int64, keys of `names`."""
    names: Mapping[int, str]
    """What is written beside a box; an unknown label is written as its number."""
    scores: Tensor | None = None
    """`[T]` in 0..1, written behind the names; None for objects without scores."""

    @classmethod
    def of_labels(cls, boxes_xyxy: np.ndarray, labels: np.ndarray, names: Mapping[int, str]) -> DrawnObjects:
        """Return labelled objects: boxes `[T, 4]` in pixels of the image, and labels `[T]` int64."""
        return cls(torch.from_numpy(boxes_xyxy), torch.from_numpy(labels), names)

    @classmethod
    def of_rows(cls, rows: np.ndarray, names: Mapping[int, str]) -> DrawnObjects:
        """Return detections of an evaluation: rows `[T, 6]` of x, y, width, height (pixels), score, label."""
        found = torch.from_numpy(rows)
        boxes_xyxy = torch.cat([found[:, :2], found[:, :2] + found[:, 2:4]], 1)
        return cls(boxes_xyxy, found[:, 5].long(), names, found[:, 4])


def draw_boxes(
    image: Tensor, boxes_xyxy: Tensor, labels: Tensor, names: Mapping[int, str], scores: Tensor | None = None
) -> Tensor:
    """Return a picture with boxes on it, enlarged if it is small.

    Args:
        image: `[3, H, W]` uint8.
        boxes_xyxy: `[T, 4]`, pixels of `image`.
        labels: `[T]`, keys of `names`.
        names: what to write; an unknown label is written as its number.
        scores: `[T]` in 0..1, written behind the names.
    """
    factor = max(1, min(-(-LEAST_SIDE // min(image.shape[1:])), LARGEST_SIDE // max(image.shape[1:])))
    image = F.interpolate(image[None], scale_factor=float(factor))[0]
    if not len(boxes_xyxy):
        return image
    texts = [printable(names.get(label, str(label))[:LONGEST_NAME]) for label in labels.tolist()]
    colours = [_colour(text) for text in texts]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores.tolist())]
    return draw_bounding_boxes(
        image,
        boxes_xyxy.float() * factor,
        [f" {text}" for text in texts],
        colors=colours,
        width=2,
        fill_labels=True,
    )


def draw_pair(image: Tensor, truth: DrawnObjects, found: DrawnObjects) -> tuple[Tensor, Tensor]:
    """Draw the truth and the predictions of one image, each on a picture of its own, both of equal size.

    Args:
        image: `[3, H, W]` uint8.
        truth: labelled objects.
        found: predictions, those that are to be shown.

    Returns:
        Two pictures `[3, h, w]` uint8, the truth first.
    """
    return draw_boxes(image, *truth), draw_boxes(image, *found)


def side_by_side(pictures: Sequence[Tensor]) -> Tensor:
    """Lay pictures of equal height `[3, H, W]` uint8 in a row."""
    gap = torch.full((3, pictures[0].shape[1], GAP), 255, dtype=torch.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    return torch.cat(parts, 2)


def _colour(name: str) -> tuple[int, int, int]:
    """Give every name a colour that stays its own."""
    hue = zlib.crc32(name.encode(errors="surrogatepass")) * 0.618 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.8, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)
