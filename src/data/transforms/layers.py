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

    reduction = 1
    origin = (0.0, 0.0)
    """Both as of `Pixels`: boxes refer to the pixels of the canvas."""

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
        to_result, shift = self._map(window, size_hw, mirrored)
        # whole pixels for half of the canvas, so that a mosaic's tiles begin between two pixels
        half = np.array(self.size) / 2
        scale = np.maximum(np.round(half * _lengths(to_result)), 1) / half
        to_result = to_result / scale
        to_flat = np.linalg.inv(to_result)
        start = -to_flat @ shift
        low, high = _around(to_flat, start, (0, 0), (width, height), MARGIN)
        limits = np.ceil(np.array(self.size) * scale - 1e-6).astype(int)
        low = low.clip(0, limits)
        high = high.clip(low, limits)
        flat = self._flat(scale, low, high)
        start = start - low
        first, last = _around(
            to_result, to_result @ low + shift, (0, 0), high - low, 1
        )
        left, upper = first.clip(0, (width, height)).tolist()
        right, lower = last.clip(0, (width, height)).tolist()
        memory = torch.empty(3, min(BAND, height), width)
        for top in range(0, height, BAND):
            band = memory[:, : min(BAND, height - top)]
            box = (left, max(top, upper), right, min(top + BAND, lower))
            shown = flat.numel() > 0 and left < right and box[1] < box[3]
            if not shown or (right - left, box[3] - box[1]) != (
                width,
                band.shape[1],
            ):
                band.fill_(self.fill)
            if shown:
                rotated = _rotated(flat, to_flat, start, box, self.fill)
                band[:, box[1] - top : box[3] - top, left:right] = rotated
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
        """Return the mean colour of the rotated canvas, `[3]` in 0..255, from a part of the pixels."""
        width, height = self.size
        total = np.zeros(3)
        covered = 0.0
        (a, b), (c, d) = self.matrix
        growth = abs(a * d - b * c)
        for image, scale, corner in self.layers:
            area = growth * scale[0] * scale[1]
            step = max(1, int(MEAN_STEP / math.sqrt(area)))
            step = min(step, *image.shape[1:])
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

    def _map(
        self,
        window: tuple[int, int, int, int],
        size_hw: tuple[int, int],
        mirrored: tuple[bool, bool],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return matrix and shift from the canvas before its rotation to a result (`bands`)."""
        size = np.array(size_hw[::-1], float)
        start = np.array(window[:2], float)
        stretch = size / (np.array(window[2:], float) - start)
        shift = (self.shift - start) * stretch
        for axis in range(2):
            if mirrored[axis]:
                stretch[axis] = -stretch[axis]
                shift[axis] = size[axis] - shift[axis]
        return stretch[:, None] * self.matrix, shift

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
        flat = torch.full(
            (3, height, width), round(self.fill), dtype=torch.uint8
        )
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
            part = across.cut(down.cut(layer.image[None], 2), 3)
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
    stop: int
    """End of the image on the canvas; nothing is copied beyond it."""

    def cut(self, image: Tensor, axis: int) -> Tensor:
        """Return these columns or rows; beyond the image, the last one is repeated."""
        length = image.shape[axis]
        part = image.narrow(
            axis, self.first, min(self.last, length) - self.first
        )
        if self.last <= length:
            return part
        shape = list(part.shape)
        shape[axis] = self.last - length
        edge = image.narrow(axis, length - 1, 1)
        return torch.cat([part, edge.expand(shape)], axis)

    def paste(self, across: _Span, part: Tensor, canvas: Tensor) -> None:
        """Copy a resized image into the canvas; self are the rows and `across` the columns of both."""
        height, width = canvas.shape[1:]
        top = max(self.start, 0)
        left = max(across.start, 0)
        bottom = min(self.stop, height)
        right = min(across.stop, width)
        if top < bottom and left < right:
            canvas[:, top:bottom, left:right] = part[
                :,
                top - self.start : bottom - self.start,
                left - across.start : right - across.start,
            ]


def _seen(length: int, scale: float, corner: float, room: int) -> _Span | None:
    """Return the part of an image along one axis that a canvas shows, or None.

    The part begins and ends where the edge of one of its pixels is closest to one of the canvas, so that
    resizing it moves its pixels very little.

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
        return round(abs(position - round(position)), 6)

    first = min(range(first, max(first - _CUTS, -1), -1), key=error)
    last = min(range(last, last + _CUTS), key=error)
    start = round(corner + scale * first)
    end = max(round(corner + scale * last), start + 1)
    stop = max(round(corner + scale * length), start + 1)
    return _Span(first, last, start, end, min(stop, end))


def _rotated(
    flat: Tensor,
    inverse: np.ndarray,
    start: np.ndarray,
    box: tuple[int, int, int, int],
    fill: float,
) -> Tensor:
    """Sample a part of the result bilinearly.

    Args:
        flat: `[3, H, W]` uint8.
        inverse: `[2, 2]`, map from the result to `flat`: inverse @ p + start, (x, y) in pixels.
        start: `[2]`, in pixels.
        box: the part, xyxy in pixels of the result.
        fill: value outside `flat`.

    Returns:
        `[3, h, w]` float32 in 0..255.
    """
    left, top, right, bottom = box
    # only what the part shows is converted: little enough for the processor's cache
    first, last = _around(inverse, start, (left, top), (right, bottom), 1)
    limits = np.array(flat.shape[:0:-1])
    first = first.clip(0, limits - 1)
    last = last.clip(first + 1, limits)
    near = flat[None, :, first[1] : last[1], first[0] : last[0]].float()
    if fill:
        near -= fill
    # the coordinates -1..1 of grid_sample go from edge to edge
    ratio = 2 / (last - first)
    to_near = inverse * ratio[:, None]
    offset = (start - first) * ratio - 1
    x = torch.arange(left, right) + 0.5
    y = torch.arange(top, bottom)[:, None] + 0.5
    grid = torch.empty(2, bottom - top, right - left)
    for axis in range(2):
        along_x = x * to_near[axis, 0]
        along_y = y * to_near[axis, 1] + offset[axis]
        torch.add(along_x, along_y, out=grid[axis])
    sampled = F.grid_sample(
        near,
        grid.permute(1, 2, 0)[None],
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )[0]
    return sampled.add_(fill) if fill else sampled


def _lengths(matrix: np.ndarray) -> np.ndarray:
    """Return the length of each column, `[2]`: the scale along x and y before a rotation."""
    return np.sqrt((matrix**2).sum(0))


def _around(
    matrix: np.ndarray,
    shift: np.ndarray,
    low: tuple[float, float],
    high: tuple[float, float] | np.ndarray,
    margin: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the whole pixels around a mapped rectangle and a margin: lower and upper corner, `[2]` int64."""
    corners = np.array([low, (high[0], low[1]), (low[0], high[1]), high])
    mapped = corners @ matrix.T + shift
    lower = np.floor(mapped.min(0) - margin).astype(int)
    return lower, np.ceil(mapped.max(0) + margin).astype(int)
