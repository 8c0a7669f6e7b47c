"""Four images on one canvas, so that an image has more objects to match (Dense O2O; DEIM, Huang et al., 2024, arXiv 2412.04234).

The only transform that needs other images, and the only one that resamples before the end: a rotation cannot wait in
a sample, which knows scale and shift alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import ConfigError
from ...core.registry import register
from ...runtime.log import logger
from .sample import Sample

LEAST_VISIBLE = 0.1
"""Boxes that keep a smaller share of their area on the canvas are dropped: there is too little left to tell what it is."""

LONGEST_TILE = 4
"""A tile's longer side in units of `output_size`, at most; a narrower image is shrunk further, so that no canvas is huge."""


@register()
class Mosaic:
    """Puts a sample and three others in a 2 x 2 canvas, then turns, shifts and scales it. Stands first in a list of transforms."""

    def __init__(
        self,
        output_size: int = 320,
        rotation_range: float = 10,
        translation_range: Sequence[float] = (0.1, 0.1),
        scaling_range: Sequence[float] = (0.5, 1.5),
        probability: float = 1.0,
        fill_value: float = 0,
        use_cache: Literal[False] = False,
        max_cached_images: int | None = None,
        random_pop: bool | None = None,
    ) -> None:
        """Store the settings.

        Args:
            output_size: shorter side of each of the four in pixels.
            rotation_range: largest turn in degrees, either way.
            translation_range: largest shift along x and y, as a part of the canvas.
            scaling_range: factor, least and most.
            probability: of acting at all; `Compose.mosaic_prob` comes on top.
            fill_value: grey value between and around the images, 0..255.
            use_cache: False alone. What a cache holds depends on what was loaded before, and a run could not be repeated.
            max_cached_images: setting of DEIM's cache, accepted because DEIM's files have it; it has no effect, which is logged.
            random_pop: likewise.

        Raises:
            ConfigError: for a value out of its range.
        """
        if use_cache:
            raise ConfigError(
                "Mosaic.use_cache is true; the other images are decoded anew each time, so that a run can be repeated: set it to False"
            )
        idle = {"max_cached_images": max_cached_images, "random_pop": random_pop}
        if ignored := [name for name, value in idle.items() if value is not None]:
            logger.info("Mosaic has no cache, so these settings have no effect: %s", ", ".join(ignored))
        if output_size < 1:
            raise ConfigError(f"Mosaic.output_size is {output_size}, expected a number of pixels")
        if not 0 <= rotation_range <= 180:
            raise ConfigError(f"Mosaic.rotation_range is {rotation_range}, expected 0 to 180 degrees")
        if len(translation_range) != 2 or not all(0 <= part <= 1 for part in translation_range):
            raise ConfigError(
                f"Mosaic.translation_range is {list(translation_range)}, expected two numbers from 0 to 1"
            )
        if len(scaling_range) != 2 or not 0 < scaling_range[0] <= scaling_range[1]:
            raise ConfigError(
                f"Mosaic.scaling_range is {list(scaling_range)}, expected two numbers above 0, the smaller first"
            )
        if not 0 <= probability <= 1:
            raise ConfigError(f"Mosaic.probability is {probability}, expected 0 to 1")
        self.output_size = output_size
        self.rotation = rotation_range
        self.translation = tuple(translation_range)
        self.scaling = tuple(scaling_range)
        self.probability = probability
        self.fill = fill_value

    def __call__(self, sample: Sample) -> None:
        """Replace a sample's pixels and boxes by those of a mosaic; what is known of its image stays.

        Raises:
            ConfigError: if the sample knows no others.
        """
        if sample.rng.random() >= self.probability:
            return
        if sample.draw_other is None:
            raise ConfigError(
                "Mosaic needs other images, but the data set's samples have no `draw_other`; set it as CocoDetection does"
            )
        parts = [sample, *(sample.draw_other(sample.rng) for _ in range(3))]
        canvas, boxes, fields = self._paste(parts)
        matrix, shift = self._draw(sample.rng, canvas.shape[2], canvas.shape[1])
        image = warp(canvas, matrix, shift, self.fill)
        boxes, visible = moved_boxes(boxes, matrix, shift, (canvas.shape[2], canvas.shape[1]))
        kept = visible >= LEAST_VISIBLE
        sample.restart(image, boxes[kept], {name: values[kept] for name, values in fields.items()})
        sample.is_mosaic = True
        sample.boxes_read = sum(part.boxes_read for part in parts)
        for part in parts[1:]:
            sample.lost.update(part.lost)
        sample.lost["Mosaic"] += int((~kept).sum())

    def _paste(self, samples: list[Sample]) -> tuple[Tensor, np.ndarray, dict[str, np.ndarray]]:
        """Return the canvas `[3, H, W]` float32 in 0..255, all boxes on it, and their fields."""
        sizes = [self._tile_size(sample) for sample in samples]
        height, width = (max(sides) for sides in zip(*sizes))
        canvas = torch.full((3, 2 * height, 2 * width), float(self.fill))
        targets = []
        for sample, (h, w), (x, y) in zip(samples, sizes, ((0, 0), (width, 0), (0, height), (width, height))):
            _, target = sample.render((h, w), canvas[:, y : y + h, x : x + w])
            targets.append(
                {
                    "boxes": target["boxes"].double().numpy() + [x, y, x, y],
                    **{name: cast(dict[str, Tensor], target)[name].numpy() for name in sample.fields},
                }
            )
        joined = {name: np.concatenate([target[name] for target in targets]) for name in targets[0]}
        return canvas, joined.pop("boxes"), joined

    def _tile_size(self, sample: Sample) -> tuple[int, int]:
        """Return (height, width) with the shorter side at `output_size`."""
        width, height = sample.canvas
        ratio = min(
            self.output_size / min(width, height), LONGEST_TILE * self.output_size / max(width, height)
        )
        return max(round(height * ratio), 1), max(round(width * ratio), 1)

    def _draw(self, rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw a map of the canvas, p -> matrix @ p + shift in pixels, that turns and scales around its centre."""
        turn, scale, right, down = rng.random(4)
        angle = math.radians(self.rotation) * (2 * turn - 1)
        factor = self.scaling[0] + scale * (self.scaling[1] - self.scaling[0])
        matrix = factor * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        centre = np.array([width, height]) / 2
        return matrix, centre - matrix @ centre + 2 * centre * self.translation * (
            2 * np.array([right, down]) - 1
        )


def warp(image: Tensor, matrix: np.ndarray, shift: np.ndarray, fill: float = 0) -> Tensor:
    """Resample an image bilinearly, each pixel p from where p -> matrix @ p + shift comes from.

    Args:
        image: `[3, H, W]` float32 in 0..255; used up.
        matrix: `[2, 2]`, (x, y) in pixels; whole numbers are the edges of pixels.
        shift: `[2]`.
        fill: value outside.

    Returns:
        `[3, H, W]` uint8.
    """
    height, width = image.shape[1:]
    half = np.array([width, height]) / 2
    inverse = np.linalg.inv(matrix)
    inverse, start = (
        inverse / half[:, None],
        -inverse @ shift / half - 1,
    )  # grid_sample's -1..1 run from edge to edge
    x, y = torch.arange(width) + 0.5, torch.arange(height)[:, None] + 0.5
    grid = torch.empty(1, height, width, 2)
    for axis in range(2):
        torch.add(x * inverse[axis, 0], y * inverse[axis, 1] + start[axis], out=grid[0, ..., axis])
    sampled = F.grid_sample(
        image.sub_(fill)[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )[0]
    return sampled.add_(fill + 0.5).to(torch.uint8)  # rounded: the conversion cuts off


def moved_boxes(
    boxes: np.ndarray, matrix: np.ndarray, shift: np.ndarray, canvas: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Map boxes by p -> matrix @ p + shift and cut them at the canvas.

    A turned box is taken for the ellipse within it: the box around its four corners would be too large for all that
    does not fill them (Kalra et al., Towards Rotation Invariance in Object Detection, 2021, arXiv 2109.13488).

    Args:
        boxes: `[T, 4]`, xyxy in pixels.
        matrix: `[2, 2]`.
        shift: `[2]` in pixels.
        canvas: (width, height).

    Returns:
        Boxes `[T, 4]`, xyxy in pixels within the canvas, and what share of its area each has there, `[T]` in 0..1.
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 @ matrix.T + shift
    half = np.sqrt(((boxes[:, 2:] - boxes[:, :2]) / 2) ** 2 @ (matrix**2).T)
    cut = np.concatenate([centres - half, centres + half], 1).clip(0, [*canvas, *canvas])
    return cut, (cut[:, 2:] - cut[:, :2]).prod(1) / np.maximum((2 * half).prod(1), 1e-9)
