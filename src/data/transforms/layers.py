"""Several images on one canvas, such as a mosaic, which are drawn directly into the batch.

An image is only stored with its map to the canvas. When the size of the batch and the visible part of the
canvas are known, its visible pixels are resized to the scale of the batch with antialiasing, and sampled once
by the rotated grid of the result's pixels (docs/decisions/0029).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 3
"""Pixels of the result around it whose colours can contribute to its own."""

MEAN_STEP = 6
"""Distance in pixels of the canvas between those of which the mean colour is computed."""


class Layer(NamedTuple):
    """An image, and its map p -> matrix @ p + shift to the canvas.

    Positions are (x, y) in pixels; integers are the edges of pixels.
    """

    image: Tensor
    """`[3, h, w]` uint8."""
    matrix: np.ndarray
    """`[2, 2]`."""
    shift: np.ndarray
    """`[2]`, in pixels of the canvas."""

    def then(self, scale: np.ndarray, shift: np.ndarray) -> Layer:
        """Return the layer with p -> scale * p + shift after its map; scale and shift are `[2]`."""
        return Layer(
            self.image,
            scale[:, None] * self.matrix,
            scale * self.shift + shift,
        )

    def thinned(self, step: int) -> Layer:
        """Return the layer with every `step`-th pixel of its image, in both directions."""
        centre = np.array([0.5, 0.5])
        offset = centre - step * centre
        return Layer(
            self.image[:, ::step, ::step],
            step * self.matrix,
            self.shift + self.matrix @ offset,
        )


class Layers:
    """Images on a canvas, which do not overlap by more than the width of a pixel at their edges.

    >>> image = torch.full((3, 4, 4), 200, dtype=torch.uint8)
    >>> layers = Layers([Layer(image, np.eye(2), np.array([4.0, 0.0]))], (8, 4))
    >>> layers.draw((0, 0, 8, 4), (2, 4))[0].tolist()
    [[0.0, 0.0, 200.0, 200.0], [0.0, 0.0, 200.0, 200.0]]
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        size: tuple[int, int],
        fill: float = 0.0,
    ) -> None:
        """Store the layers.

        Args:
            layers: images with their maps.
            size: (width, height) of the canvas in pixels.
            fill: grey value between and around the images, 0..255.
        """
        self.layers = tuple(layers)
        self.size = size
        self.fill = fill

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, height, width) of the canvas, as of an image."""
        width, height = self.size
        return 3, height, width

    def draw(
        self,
        window: tuple[int, int, int, int],
        size_hw: tuple[int, int],
        mirrored: tuple[bool, bool] = (False, False),
    ) -> Tensor:
        """Draw a part of the canvas.

        Args:
            window: the part, xyxy in pixels of the canvas.
            size_hw: (height, width) of the result; the part is stretched to it.
            mirrored: whether the result is mirrored along x and y.

        Returns:
            `[3, height, width]` float32 in 0..255.
        """
        height, width = size_hw
        size = np.array([width, height], float)
        start = np.array(window[:2], float)
        end = np.array(window[2:], float)
        scale = size / (end - start)
        shift = -start * scale
        for axis in range(2):
            if mirrored[axis]:
                scale[axis] = -scale[axis]
                shift[axis] = size[axis] - shift[axis]
        result = torch.full((3, height, width), float(self.fill))
        for layer in self.layers:
            _add(layer.then(scale, shift), result, self.fill)
        # pixels of two images at their common edge can add up to more
        return result.clamp_(0, 255)

    def whole(self) -> Tensor:
        """Return the canvas as an image, `[3, height, width]` uint8."""
        width, height = self.size
        drawn = self.draw((0, 0, width, height), (height, width))
        return drawn.round_().to(torch.uint8)

    def mean_rgb(self) -> np.ndarray:
        """Return the mean colour of the canvas, `[3]` in 0..255, computed from a part of the pixels."""
        thinned = []
        for layer in self.layers:
            scale = np.linalg.norm(layer.matrix, axis=0).max()
            thinned.append(layer.thinned(max(1, int(MEAN_STEP / scale))))
        width, height = self.size
        coarse = (-(-height // MEAN_STEP), -(-width // MEAN_STEP))
        layers = Layers(thinned, self.size, self.fill)
        drawn = layers.draw((0, 0, width, height), coarse)
        return drawn.mean((1, 2)).double().numpy()


def _add(layer: Layer, result: Tensor, fill: float) -> None:
    """Add an image minus the fill value to the pixels of the result `[3, H, W]` that show it."""
    height, width = result.shape[1:]
    image = layer.image
    inverse = np.linalg.inv(layer.matrix)
    start = -inverse @ layer.shift
    x0, y0, x1, y1 = _bounds(
        layer.matrix, layer.shift, image.shape[2], image.shape[1], 1
    ).clip(0, [width, height, width, height])
    if x1 <= x0 or y1 <= y0:
        return
    # the part of the image that is seen, resized to the scale of the result
    scale = np.linalg.norm(layer.matrix, axis=0)
    limits = [image.shape[2], image.shape[1]] * 2
    seen = _bounds(inverse, start, width, height, MARGIN / scale)
    left, top, right, bottom = seen.clip(0, limits)
    if right <= left or bottom <= top:
        return
    part = image[None, :, top:bottom, left:right]
    sides = np.array([right - left, bottom - top])
    resized = np.maximum(np.round(sides * scale), 1).astype(int)
    if (resized != sides).any():
        part = F.interpolate(
            part,
            (int(resized[1]), int(resized[0])),
            mode="bilinear",
            antialias=True,
        )
    pixels = part.float().contiguous()
    if fill:
        pixels -= fill
    # the coordinates -1..1 of grid_sample go from edge to edge
    ratio = 2 / sides
    inverse = inverse * ratio[:, None]
    start = (start - (left, top)) * ratio - 1
    x = torch.arange(x0, x1) + 0.5
    y = torch.arange(y0, y1)[:, None] + 0.5
    grid = torch.empty(2, int(y1 - y0), int(x1 - x0))
    for axis in range(2):
        along_x = x * inverse[axis, 0]
        along_y = y * inverse[axis, 1] + start[axis]
        torch.add(along_x, along_y, out=grid[axis])
    sampled = F.grid_sample(
        pixels,
        grid.permute(1, 2, 0)[None],
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    result[:, y0:y1, x0:x1] += sampled[0]


def _bounds(
    matrix: np.ndarray,
    shift: np.ndarray,
    width: int,
    height: int,
    margin: float | np.ndarray,
) -> np.ndarray:
    """Return the whole pixels around a mapped rectangle and a margin, `[4]` xyxy, int64."""
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]])
    mapped = corners @ matrix.T + shift
    low = np.floor(mapped.min(0) - margin)
    high = np.ceil(mapped.max(0) + margin)
    return np.concatenate([low, high]).astype(int)
