"""Captions above pictures: text and samples of line styles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..runtime.log import printable
from .drawing import LineStyle, draw_outline, font_size, line_width
from .fonts import drawable, font_of_size, text_width
from .palette import BLACK, Colour

SMALLEST_CAPTION = 9
"""Minimum font size of captions in pixels."""

PAPER: Colour = (255, 255, 255)
INK: Colour = BLACK

CaptionLine = Sequence["str | LineStyle"]
"""Texts, and line styles of which a sample is drawn."""


def caption_size(lines: Sequence[CaptionLine], height: int, width: int) -> int:
    """Return the largest font size, in pixels, at which all lines fit above a picture of this size.

    The size is not larger than that of labels in the picture. At the minimum, long texts are cut.
    """
    for size in range(font_size(height, width), SMALLEST_CAPTION, -1):
        if all(_line_length(line, size) <= width for line in lines):
            return size
    return SMALLEST_CAPTION


def with_caption(
    picture: Tensor, lines: Sequence[CaptionLine], size: int | None = None
) -> Tensor:
    """Add lines of text above a picture.

    Example:
        >>> picture = torch.zeros(3, 100, 200, dtype=torch.uint8)
        >>> captioned = with_caption(picture, [["cat.jpg"], [LineStyle.SOLID, "correct: 1"]])
        >>> captioned.shape[2], captioned.shape[1] > 100
        (200, True)

    Args:
        picture: `[3, H, W]` uint8.
        lines: lines of the caption.
        size: font size in pixels; None uses `caption_size`.

    Returns:
        `[3, h, W]` uint8.
    """
    height, width = picture.shape[1:]
    if size is None:
        size = caption_size(lines, height, width)
    bars = [_caption_line(line, width, size) for line in lines]
    caption = torch.from_numpy(np.concatenate(bars)).permute(2, 0, 1)
    return torch.cat([caption, picture], 1)


def shortened(name: str, width: int, size: int) -> str:
    """Cut the beginning of a file name so that the rest is not wider than `width` pixels."""
    text, font = drawable(printable(name))
    if text_width(text, font, size) <= width:
        return text
    for start in range(1, len(text)):
        rest = "..." + text[start:]
        if text_width(rest, font, size) <= width:
            return rest
    return ""


def _line_length(line: CaptionLine, size: int) -> int:
    """Return the length of a line in pixels."""
    length = 0
    for part in line:
        if isinstance(part, LineStyle):
            length += _sample_length(size)
        else:
            length += text_width(*drawable(printable(part)), size) + size // 2
        length += size // 2
    return length


def _sample_length(size: int) -> int:
    """Return the length of the sample of a line style in pixels."""
    return round(2.4 * size)


def _caption_line(line: CaptionLine, width: int, size: int) -> np.ndarray:
    """Draw a line of a caption: `[h, width, 3]` uint8."""
    height = round(1.4 * size)
    pixels = np.full((height, width, 3), PAPER, np.uint8)
    picture = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(picture)
    samples = []
    x = size // 4
    for part in line:
        if isinstance(part, LineStyle):
            samples.append((x, part))
            x += _sample_length(size)
        else:
            text = shortened(part, width - x, size)
            shown, font = drawable(text)
            canvas.text((x, 0), shown, INK, font_of_size(font, size))
            x += text_width(shown, font, size) + size // 2
        x += size // 2
    pixels = np.array(picture)
    for start, style in samples:
        _draw_sample(pixels, start, size, style)
    return pixels


def _draw_sample(
    pixels: np.ndarray, start: int, size: int, style: LineStyle
) -> None:
    """Draw a small box in a line style."""
    height, width = pixels.shape[:2]
    end = min(start + _sample_length(size), width)
    margin = max(1, height // 6)
    box = np.array([min(start, end - 1), margin, end, height - margin])
    draw_outline(pixels, box, INK, line_width(0, 0), style)
