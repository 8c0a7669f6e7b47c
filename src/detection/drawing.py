"""Draw boxes, class names and scores on pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..runtime.log import printable
from .fonts import drawable, font_of_size, text_width
from .label_places import place_labels
from .palette import BLACK, WHITE, Colour, class_colour, text_colour

LEAST_SIDE = 320
"""Side in pixels below which pictures are enlarged, so that names are readable."""

LARGEST_SIDE = 4096
"""Maximum side in pixels of enlarged pictures."""

LONGEST_NAME = 40
"""Maximum characters of a class name in a picture."""

SMALLEST_FONT = 11
"""Minimum font size of labels in pixels."""

BASE_FONT = 7
FONT_PER_PIXEL = 0.0115
"""Font size: `BASE_FONT` plus this for each pixel of the mean side of the picture."""

LINE_PER_PIXEL = 1 / 400
"""Line width for each pixel of the mean side of the picture; lines have at least two pixels."""


class LineStyle(Enum):
    """Style of a box, which can be recognized without colours."""

    SOLID = "solid"
    DASHED = "dashed"
    DOTTED = "dotted"
    """Dots on a white line."""


LABEL_FILLS = {LineStyle.DASHED: BLACK, LineStyle.DOTTED: WHITE}
"""Colours of labels by style; labels of solid boxes have the colour of the class."""


class DrawnObjects(NamedTuple):
    """T objects to draw on one image."""

    boxes_xyxy: Tensor
    """`[T, 4]`, pixels of the image."""
    labels: Tensor
    """`[T]` int64, keys of `names`; they also choose the colours."""
    names: Mapping[int, str]
    """Class names by label; an unknown label is shown as its number."""
    scores: Tensor | None = None
    """`[T]` in 0..1, shown after the names; None shows no scores, and NaN shows none for that object."""
    styles: Sequence[LineStyle] | None = None
    """Style of each box; None draws solid lines."""

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

    def scaled(self, across: float, down: float) -> DrawnObjects:
        """Return the objects for a picture whose width and height are multiplied by factors."""
        factors = torch.tensor([across, down, across, down])
        return self._replace(boxes_xyxy=self.boxes_xyxy.float() * factors)


def draw_boxes(
    image: Tensor,
    boxes_xyxy: Tensor,
    labels: Tensor,
    names: Mapping[int, str],
    scores: Tensor | None = None,
    styles: Sequence[LineStyle] | None = None,
) -> Tensor:
    """Draw boxes on an image, which is enlarged if it is small.

    Example:
        >>> image = torch.zeros(3, 480, 640, dtype=torch.uint8)
        >>> boxes = torch.tensor([[100.0, 100.0, 300.0, 200.0]])
        >>> draw_boxes(image, boxes, torch.tensor([0]), {0: "cat"}, torch.tensor([0.9])).shape
        torch.Size([3, 480, 640])

    Args:
        image: `[3, H, W]` uint8.
        boxes_xyxy: `[T, 4]`, pixels of `image`.
        labels: `[T]` int64, keys of `names`; they also choose the colours.
        names: class names by label; an unknown label is shown as its number.
        scores: `[T]` in 0..1, shown after the names; None shows no scores, and NaN none for an object.
        styles: style of each box; None draws solid lines.

    Returns:
        `[3, h, w]` uint8.
    """
    objects = DrawnObjects(boxes_xyxy, labels, names, scores, styles)
    return draw_at_size(image, objects, readable_size(image))


def readable_size(image: Tensor) -> tuple[int, int]:
    """Return (height, width) at which names on an image `[3, H, W]` are readable: a multiple of its size."""
    wanted_factor = math.ceil(LEAST_SIDE / min(image.shape[1:]))
    largest_factor = LARGEST_SIDE // max(image.shape[1:])
    factor = max(1, min(wanted_factor, largest_factor))
    return image.shape[1] * factor, image.shape[2] * factor


def draw_at_size(
    image: Tensor, objects: DrawnObjects, size: tuple[int, int]
) -> Tensor:
    """Resize an image and draw objects on it, with lines and text for the new size.

    Args:
        image: `[3, H, W]` uint8.
        objects: objects in pixels of `image`.
        size: (height, width) of the picture.

    Returns:
        `[3, height, width]` uint8.
    """
    height, width = size
    across = width / image.shape[2]
    down = height / image.shape[1]
    pixels = resized(image, size).permute(1, 2, 0).contiguous().numpy()
    drawn = _draw(pixels.copy(), objects.scaled(across, down))
    return torch.from_numpy(drawn).permute(2, 0, 1).contiguous()


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an image `[3, H, W]` uint8 at (height, width): whole factors repeat its pixels."""
    height, width = size
    if (height, width) == tuple(image.shape[1:]):
        return image
    factor = height // image.shape[1]
    if factor and (height, width) == (
        image.shape[1] * factor,
        image.shape[2] * factor,
    ):
        return F.interpolate(image[None], size, mode="nearest")[0]
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def font_size(height: int, width: int) -> int:
    """Return the font size in pixels for a picture of this size."""
    mean_side = (height + width) / 2
    return max(SMALLEST_FONT, round(BASE_FONT + mean_side * FONT_PER_PIXEL))


def line_width(height: int, width: int) -> int:
    """Return the line width in pixels for a picture of this size."""
    return max(2, round((height + width) / 2 * LINE_PER_PIXEL))


def _draw(pixels: np.ndarray, objects: DrawnObjects) -> np.ndarray:
    """Draw objects on `[H, W, 3]` uint8, which is changed; return the picture."""
    height, width = pixels.shape[:2]
    boxes = _pixel_boxes(objects.boxes_xyxy, height, width)
    if not len(boxes):
        return pixels
    thickness = line_width(height, width)
    styles = objects.styles or [LineStyle.SOLID] * len(boxes)
    labels = objects.labels.tolist()
    # the first object, which has the highest score, is drawn last
    for number in reversed(range(len(boxes))):
        colour = class_colour(labels[number])
        draw_outline(pixels, boxes[number], colour, thickness, styles[number])
    return _draw_labels(pixels, boxes, objects, styles)


def _pixel_boxes(boxes_xyxy: Tensor, height: int, width: int) -> np.ndarray:
    """Return boxes as whole pixels inside the picture, `[T, 4]` int, with at least one pixel."""
    boxes = np.nan_to_num(boxes_xyxy.double().numpy(), posinf=1e6, neginf=-1e6)
    low = np.minimum(boxes[:, :2], boxes[:, 2:])
    high = np.maximum(boxes[:, :2], boxes[:, 2:])
    limit = np.array([width, height])
    starts = low.round().clip(0, limit - 1)
    ends = np.maximum(high.round().clip(0, limit), starts + 1)
    return np.concatenate([starts, ends], 1).astype(np.int64)


def draw_outline(
    pixels: np.ndarray,
    box: np.ndarray,
    colour: Colour,
    thickness: int,
    style: LineStyle,
) -> None:
    """Draw the outline of a box, inside of it.

    Args:
        pixels: `[H, W, 3]` uint8, changed.
        box: `[4]` int, xyxy, inside the picture.
        colour: colour of the line.
        thickness: width of the line in pixels.
        style: style of the line.
    """
    if style is LineStyle.DOTTED:
        draw_outline(pixels, box, WHITE, thickness, LineStyle.SOLID)
    left, top, right, bottom = box.tolist()
    across = _pattern(right - left, thickness, style)
    down = _pattern(bottom - top, thickness, style)
    inner_top = min(top + thickness, bottom)
    inner_bottom = max(bottom - thickness, top)
    inner_left = min(left + thickness, right)
    inner_right = max(right - thickness, left)
    pixels[top:inner_top, left:right][:, across] = colour
    pixels[inner_bottom:bottom, left:right][:, across] = colour
    pixels[top:bottom, left:inner_left][down] = colour
    pixels[top:bottom, inner_right:right][down] = colour


def _pattern(length: int, thickness: int, style: LineStyle) -> np.ndarray:
    """Return which pixels along a line are drawn, `[length]` bool; both ends are."""
    if style is LineStyle.SOLID:
        return np.ones(length, bool)
    dash, gap = (5, 3) if style is LineStyle.DASHED else (1, 2)
    dash *= thickness
    # whole periods, so that a line begins and ends with a dash
    periods = max(1, round((length - dash) / (dash + gap * thickness)))
    period = max((length - dash) / periods, 1)
    return np.arange(length) % period < dash


def _draw_labels(
    pixels: np.ndarray,
    boxes: np.ndarray,
    objects: DrawnObjects,
    styles: Sequence[LineStyle],
) -> np.ndarray:
    """Draw names and scores beside boxes `[T, 4]` int; return the picture `[H, W, 3]`."""
    height, width = pixels.shape[:2]
    size = font_size(height, width)
    padding = max(1, size // 6)
    texts = [drawable(text) for text in _texts(objects)]
    sizes = []
    for text, font in texts:
        ascent, descent = font_of_size(font, size).getmetrics()
        sizes.append(
            (text_width(text, font, size) + 2 * padding, ascent + descent)
        )
    corners = place_labels(boxes, np.array(sizes), width, height)
    picture = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(picture)
    labels = objects.labels.tolist()
    for number in reversed(range(len(texts))):
        text, font = texts[number]
        x, y = corners[number].tolist()
        label_width, label_height = sizes[number]
        corner = (x + label_width - 1, y + label_height - 1)
        colour = class_colour(labels[number])
        fill = LABEL_FILLS.get(styles[number], colour)
        ink = text_colour(fill)
        canvas.rectangle([(x, y), corner], fill=fill, outline=colour)
        canvas.text((x + padding, y), text, ink, font_of_size(font, size))
    return np.array(picture)


def _texts(objects: DrawnObjects) -> list[str]:
    """Return the text of each label: the class name and the score."""
    texts = []
    scores = [] if objects.scores is None else objects.scores.tolist()
    for number, label in enumerate(objects.labels.tolist()):
        name = objects.names.get(label, str(label))[:LONGEST_NAME]
        text = printable(name)
        if scores and not math.isnan(scores[number]):
            text += f" {scores[number]:.2f}"
        texts.append(text)
    return texts
