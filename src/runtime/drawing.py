"""Boxes, names and scores on pictures."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from .log import printable

LEAST_SIDE = 320
"""Smaller pictures are enlarged, so that names can be read."""

LARGEST_SIDE = 4096
"""To which pictures are enlarged at most."""

LONGEST_NAME = 40
"""Characters of a class's name that are written."""

GAP = 8
"""White pixels between pictures that stand side by side."""


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


def side_by_side(pictures: Sequence[Tensor]) -> Tensor:
    """Lay pictures of equal height `[3, H, W]` uint8 in a row."""
    gap = torch.full((3, pictures[0].shape[1], GAP), 255, dtype=torch.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    return torch.cat(parts, 2)


def _colour(name: str) -> tuple[int, int, int]:
    """Give every name a colour that stays its own."""
    hue = zlib.crc32(name.encode(errors="surrogatepass")) * 0.618 % 1
    return tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, 1.0))
