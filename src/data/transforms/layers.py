"""Several images on one canvas, such as a mosaic, which are drawn directly into the batch.

An image is only stored with its place on the canvas, and the canvas with its rotation. When the size of the
batch and the visible part are known, the visible pixels of each image are resized to the scale of the batch
with antialiasing, and all of them are rotated into the batch at once (docs/decisions/0029).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BAND = 96
"""Rows of the result that are drawn at once, few enough for the processor's cache."""

MARGIN = 2
"""Pixels around the visible ones that can contribute to their colours."""

MEAN_STEP = 6
"""Distance in pixels of the canvas between those of which the mean colour is computed."""

_CUTS = 16
"""Columns or rows of an image among which the one is chosen that is nearest to the edge of a drawn pixel."""


class Layer(NamedTuple):
    """An image on a canvas, before the canvas is rotated."""

    image: Tensor
    """`[3, h, w]` uint8."""
    scale: tuple[float, float]
    """Factors (x, y) from pixels of the image to the canvas."""
    corner: tuple[float, float]
    """Position (x, y) of the image's upper left corner."""


class Layers:
    """Images on a canvas that is rotated; the images do not overlap.

    >>> image = torch.full((3, 4, 4), 200, dtype=torch.uint8)
    >>> layers = Layers([Layer(image, (1.0, 1.0), (4.0, 0.0))], (8, 4), np.eye(2), np.zeros(2))
    >>> layers.draw((0, 0, 8, 4), (2, 4))[0].tolist()
    [[0.0, 0.0, 200.0, 200.0], [0.0, 0.0, 200.0, 200.0]]
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        size: tuple[int, int],
        matrix: np.ndarray,
        shift: np.ndarray,
        fill: float = 0.0,
    ) -> None:
        """Store the layers.

        Args:
            layers: images with their places.
            size: (width, height) of the canvas in pixels, before and after the rotation.
            matrix: `[2, 2]`; the canvas is moved by p -> matrix @ p + shift, (x, y) in pixels.
            shift: `[2]`, in pixels.
            fill: grey value between and around the images, 0..255.
        """
        self.layers = tuple(layers)
        self.size = size
        self.matrix = matrix
        self.shift = shift
        self.fill = fill

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, height, width) of the canvas, as of an image."""
        width, height = self.size
        return 3, height, width

    def bands(
        self,
        window: tuple[int, int, int, int],
        size_hw: tuple[int, int],
        mirrored: tuple[bool, bool] = (False, False),
    ) -> Iterator[tuple[int, Tensor]]:
        """Draw a part of the rotated canvas in bands, from top to bottom.

        Args:
            window: the part, xyxy in pixels of the canvas.
            size_hw: (height, width) of the result; the part is stretched to it.
            mirrored: whether the result is mirrored along x and y.

        Yields:
            The first row of a band in the result, and the band, `[3, h, width]` float32 in 0..255. It is
            overwritten by the next one.
        """
        height, width = size_hw
        size = np.array([width, height], float)
        start = np.array(window[:2], float)
        stretch = size / (np.array(window[2:], float) - start)
        shift = (self.shift - start) * stretch
        for axis in range(2):
            if mirrored[axis]:
                stretch[axis] = -stretch[axis]
                shift[axis] = size[axis] - shift[axis]
        matrix = stretch[:, None] * self.matrix
        # whole pixels for half of the canvas, so that a mosaic's tiles begin between two pixels
        half = np.array(self.size) / 2
        scale = np.maximum(np.round(half * np.sqrt((matrix**2).sum(0))), 1)
        scale /= half
        matrix = matrix / scale
        inverse = np.linalg.inv(matrix)
        limits = np.array(self.size) * scale
        low, high = _around(inverse, -inverse @ shift, (0, 0), size, MARGIN)
        low = low.clip(0, limits).astype(int)
        high = high.clip(0, np.ceil(limits)).astype(int)
        memory = torch.empty(3, min(BAND, height), width)
        if (high <= low).any():
            shown = np.zeros(4, int)
        else:
            flat = self._flat(scale, low, high)
            shift = shift + matrix @ low
            first, last = _around(matrix, shift, (0, 0), high - low, 1)
            shown = np.concatenate([first, last]).clip(0, [*size, *size])
        left, upper, right, lower = shown.astype(int).tolist()
        start = -inverse @ shift
        x = torch.arange(left, right) + 0.5
        columns = [x * inverse[axis, 0] for axis in range(2)]
        for top in range(0, height, BAND):
            band = memory[:, : min(BAND, height - top)]
            begin = max(top, upper)
            end = min(top + band.shape[1], lower)
            inside = begin < end and left < right
            if not inside or (end - begin, right - left) != band.shape[1:]:
                band.fill_(self.fill)
            if inside:
                part = band[:, begin - top : end - top, left:right]
                first, last = _around(
                    inverse, start, (left, begin), (right, end), 1
                )
                first = first.clip(0, high - low - 1)
                last = last.clip(first + 1, high - low)
                near = flat[
                    None, :, first[1] : last[1], first[0] : last[0]
                ].float()
                if self.fill:
                    near -= self.fill
                # the coordinates -1..1 of grid_sample go from edge to edge
                ratio = 2 / (last - first)
                y = torch.arange(begin, end)[:, None] + 0.5
                grid = torch.empty(2, end - begin, right - left)
                for axis in range(2):
                    rows = y * (inverse[axis, 1] * ratio[axis]) + (
                        (start[axis] - first[axis]) * ratio[axis] - 1
                    )
                    torch.add(
                        rows, columns[axis], alpha=ratio[axis], out=grid[axis]
                    )
                drawn = F.grid_sample(
                    near,
                    grid.permute(1, 2, 0)[None],
                    mode="bilinear",
                    padding_mode="zeros",
                    align_corners=False,
                )[0]
                torch.add(drawn, self.fill, out=part)
            yield top, band

    def draw(
        self, window: tuple[int, int, int, int], size_hw: tuple[int, int]
    ) -> Tensor:
        """Draw a part of the canvas (`bands`) as one image, `[3, height, width]` float32 in 0..255."""
        result = torch.empty(3, *size_hw)
        for top, band in self.bands(window, size_hw):
            result[:, top : top + band.shape[1]] = band
        return result

    def whole(self) -> Tensor:
        """Return the canvas as an image, `[3, height, width]` uint8."""
        width, height = self.size
        drawn = self.draw((0, 0, width, height), (height, width))
        return drawn.round_().to(torch.uint8)

    def mean_rgb(self) -> np.ndarray:
        """Return the mean colour of the rotated canvas, `[3]` in 0..255, computed from a part of the pixels."""
        width, height = self.size
        total = np.zeros(3)
        covered = 0.0
        (a, b), (c, d) = self.matrix
        growth = abs(a * d - b * c)
        for image, scale, corner in self.layers:
            area = growth * scale[0] * scale[1]
            step = max(1, int(MEAN_STEP / math.sqrt(area)))
            first = step // 2
            pixels = image[:, first::step, first::step].numpy()
            rows, columns = pixels.shape[1:]
            y = (np.arange(rows) * step + first + 0.5) * scale[1] + corner[1]
            x = (np.arange(columns) * step + first + 0.5) * scale[0] + corner[0]
            at_x = a * x + (b * y + self.shift[0])[:, None]
            at_y = c * x + (d * y + self.shift[1])[:, None]
            inside = (at_x >= 0) & (at_x < width) & (at_y >= 0)
            inside &= at_y < height
            weight = area * step**2
            total += weight * (pixels * inside).sum((1, 2))
            covered += weight * np.count_nonzero(inside)
        empty = max(width * height - covered, 0.0)
        return (total + empty * self.fill) / (covered + empty)

    def _flat(
        self, scale: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> Tensor:
        """Return a part of the canvas before its rotation.

        Args:
            scale: `[2]`, factors (x, y) from the canvas to pixels of the result.
            low: `[2]`, upper left corner of the part in pixels of the result, int64.
            high: `[2]`, lower right corner.

        Returns:
            `[3, h, w]` uint8.
        """
        width, height = (high - low).tolist()
        flat = torch.full((3, height, width), self.fill, dtype=torch.uint8)
        for layer in self.layers:
            spans = []
            for axis in range(2):
                span = _seen(
                    layer.image.shape[2 - axis],
                    layer.scale[axis] * float(scale[axis]),
                    layer.corner[axis] * float(scale[axis]) - float(low[axis]),
                    (width, height)[axis],
                )
                spans.append(span)
            across, down = spans
            if across is None or down is None:
                continue
            part = layer.image[
                None, :, down.first : down.last, across.first : across.last
            ]
            size = (down.end - down.start, across.end - across.start)
            if part.shape[2:] != size:
                part = F.interpolate(
                    part, size, mode="bilinear", antialias=True
                )
            down.paste(across, part[0], flat)
        return flat


class _Span(NamedTuple):
    """Columns or rows of an image, and those of the canvas that they are resized to."""

    first: int
    last: int
    start: int
    """Position on the canvas, which can lie beyond it."""
    end: int

    def paste(self, across: _Span, part: Tensor, canvas: Tensor) -> None:
        """Copy a resized image into the canvas; self are the rows and `across` the columns of both."""
        height, width = canvas.shape[1:]
        top = max(self.start, 0)
        left = max(across.start, 0)
        bottom = min(self.end, height)
        right = min(across.end, width)
        if top < bottom and left < right:
            canvas[:, top:bottom, left:right] = part[
                :,
                top - self.start : bottom - self.start,
                left - across.start : right - across.start,
            ]


def _seen(length: int, scale: float, corner: float, room: int) -> _Span | None:
    """Return the part of an image along one axis that a canvas shows, or None.

    The part begins and ends where the edge of one of its pixels is closest to one of the canvas.

    Args:
        length: pixels of the image.
        scale: factor from them to those of the canvas.
        corner: position of the first one on the canvas.
        room: pixels of the canvas.
    """
    reach = 1 + 1 / scale
    first = max(math.floor(-corner / scale - reach), 0)
    last = min(math.ceil((room - corner) / scale + reach), length)
    if first >= last:
        return None

    def error(at: int) -> float:
        position = corner + scale * at
        return abs(position - round(position))

    first = min(range(first, max(first - _CUTS, -1), -1), key=error)
    if last < length:
        last = min(range(last, min(last + _CUTS, length + 1)), key=error)
    start = round(corner + scale * first)
    end = max(round(corner + scale * last), start + 1)
    return _Span(first, last, start, end)


def _around(
    matrix: np.ndarray, shift: np.ndarray, low, high, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the whole pixels around the image of a rectangle and a margin: lower and upper corner, `[2]`."""
    corners = np.array([low, (high[0], low[1]), (low[0], high[1]), high])
    mapped = corners @ matrix.T + shift
    low = np.floor(mapped.min(0) - margin).astype(int)
    return low, np.ceil(mapped.max(0) + margin).astype(int)
