"""Mosaic: four images on one canvas, for more objects per image (Dense O2O; DEIM, Huang et al., arXiv
2412.04234).

This is the only transform that needs other images. It only computes where they are on the canvas; `layers`
draws them, directly into the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import numpy as np

from ...core.errors import ConfigError
from ...core.registry import register
from ...runtime.log import logger
from .layers import Layer, Layers
from .sample import Sample

MIN_VISIBLE = 0.1
"""Minimum fraction of a box's area on the canvas; boxes with less are dropped, because too little of them is
visible."""

LONGEST_TILE = 4
"""Maximum longer side of a tile, in units of `output_size`; narrower images are shrunk to limit the
canvas."""


@register()
class Mosaic:
    """Combine a sample with three others on a 2 x 2 canvas, then rotate, shift and scale it.

    It must be the first transform of a list.

    >>> def draw(rng):
    ...     image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    ...     return Sample(image, np.array([[5.0, 5, 30, 15]]), {}, {}, rng, draw_other=draw)
    >>> sample = draw(np.random.default_rng(0))
    >>> Mosaic(output_size=64)(sample)
    >>> sample.canvas, sample.is_mosaic
    ((256, 128), True)
    """

    def __init__(
        self,
        output_size: int | None = 320,
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
            output_size: shorter side of each of the four images in pixels; None takes half of the shorter
                side of the images that the list of transforms returns (`fit_to`).
            rotation_range: maximum rotation in degrees, in either direction.
            translation_range: maximum shift along x and y, as a fraction of the canvas.
            scaling_range: minimum and maximum factor.
            probability: probability of the transform, multiplied by `Compose.mosaic_prob`.
            fill_value: grey value between and around the images, 0..255.
            use_cache: must be False. The content of a cache depends on the images loaded before, so a run
                with a cache is not reproducible.
            max_cached_images: setting of DEIM's cache, accepted because DEIM's configurations have it; a log
                line says that it has no effect.
            random_pop: another setting of this cache, treated in the same way.

        Raises:
            ConfigError: if a value is out of range.
        """
        if use_cache:
            raise ConfigError(
                "Mosaic.use_cache is true, which is not supported: the other images are decoded each time, "
                "so that a run is reproducible; set it to False"
            )
        ignored = []
        if max_cached_images is not None:
            ignored.append("max_cached_images")
        if random_pop is not None:
            ignored.append("random_pop")
        if ignored:
            logger.info(
                "Mosaic has no cache, so these settings have no effect: %s",
                ", ".join(ignored),
            )
        if output_size is not None and output_size < 1:
            raise ConfigError(
                f"Mosaic.output_size is {output_size}, expected a number of pixels"
            )
        if not 0 <= rotation_range <= 180:
            raise ConfigError(
                f"Mosaic.rotation_range is {rotation_range}, expected 0 to 180 degrees"
            )
        in_range = all(0 <= part <= 1 for part in translation_range)
        if len(translation_range) != 2 or not in_range:
            raise ConfigError(
                f"Mosaic.translation_range is {list(translation_range)}, expected two numbers from 0 to 1"
            )
        if (
            len(scaling_range) != 2
            or not 0 < scaling_range[0] <= scaling_range[1]
        ):
            raise ConfigError(
                f"Mosaic.scaling_range is {list(scaling_range)}, expected two numbers above 0, "
                "the smaller first"
            )
        if not 0 <= probability <= 1:
            raise ConfigError(
                f"Mosaic.probability is {probability}, expected 0 to 1"
            )
        self.output_size = output_size
        self.rotation = rotation_range
        self.translation = tuple(translation_range)
        self.scaling = tuple(scaling_range)
        self.probability = probability
        self.fill = fill_value

    def fit_to(self, size: tuple[int, int] | None) -> None:
        """Set a missing `output_size` to half of the shorter side of `size`.

        Args:
            size: (height, width) of all samples after the transforms in pixels, or None if their sizes
                differ.

        Raises:
            ConfigError: if `output_size` is missing and the samples have no common size.
        """
        if self.output_size is not None:
            return
        if size is None:
            raise ConfigError(
                "Mosaic.output_size is not set, and no transform after it gives all images one size; set it "
                "to the shorter side of a tile in pixels, or add Resize"
            )
        self.output_size = max(min(size) // 2, 1)

    def __call__(self, sample: Sample) -> None:
        """Replace the pixels and boxes of a sample by those of a mosaic; its `info` is kept.

        Raises:
            ConfigError: if the sample has no function to draw others, or `output_size` is not known.
        """
        if sample.rng.random() >= self.probability:
            return
        if sample.draw_other is None:
            raise ConfigError(
                "Mosaic needs other images, but the data set's samples have no `draw_other`; set "
                "it as CocoDetection does"
            )
        self.fit_to(None)  # raises if a missing size has not been set
        others = [sample.draw_other(sample.rng) for _ in range(3)]
        parts = [sample, *others]
        sizes = [self._tile_size(part.canvas) for part in parts]
        height, width = map(max, zip(*sizes))
        places = ((0, 0), (width, 0), (0, height), (width, height))
        canvas = (2 * width, 2 * height)
        matrix, shift = self._draw(sample.rng, *canvas)
        factor = math.sqrt(np.linalg.det(matrix))
        layers = []
        for part, size_hw, place in zip(parts, sizes, places):
            layers.append(_layer(part, size_hw, place, factor))
        boxes, fields = _joined(parts, sizes, places)
        boxes, visible = moved_boxes(boxes, matrix, shift, canvas)
        kept = visible >= MIN_VISIBLE
        kept_fields = {name: values[kept] for name, values in fields.items()}
        sample.restart(
            Layers(layers, canvas, matrix, shift, self.fill),
            boxes[kept],
            kept_fields,
        )
        sample.is_mosaic = True
        sample.boxes_read = sum(part.boxes_read for part in parts)
        for part in others:
            sample.lost.update(part.lost)
        sample.lost["Mosaic"] += int((~kept).sum())

    def tile_scale(self, size: tuple[int, int]) -> float:
        """Return the largest scale at which an image of (width, height) can be drawn as a tile."""
        height, width = self._tile_size(size)
        return self.scaling[1] * max(width / size[0], height / size[1])

    def _tile_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) with the shorter side at `output_size`."""
        width, height = size
        shorter = cast(int, self.output_size)
        by_shorter = shorter / min(width, height)
        by_longer = LONGEST_TILE * shorter / max(width, height)
        ratio = min(by_shorter, by_longer)
        return max(round(height * ratio), 1), max(round(width * ratio), 1)

    def _draw(
        self, rng: np.random.Generator, width: int, height: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw a random map p -> matrix @ p + shift, in pixels.

        The map rotates and scales the canvas around its centre, then shifts it.
        """
        turn, scale, right, down = rng.random(4)
        angle = math.radians(self.rotation) * (2 * turn - 1)
        cos = math.cos(angle)
        sin = math.sin(angle)
        low, high = self.scaling
        factor = low + scale * (high - low)
        matrix = factor * np.array([[cos, -sin], [sin, cos]])
        centre = np.array([width, height]) / 2
        direction = 2 * np.array([right, down]) - 1
        translation = 2 * centre * self.translation * direction
        return matrix, centre - matrix @ centre + translation


def _layer(
    part: Sample,
    size_hw: tuple[int, int],
    place: tuple[int, int],
    factor: float,
) -> Layer:
    """Return a tile of (height, width) pixels at a place on the canvas, which is then scaled by a factor."""
    height, width = size_hw
    file_width, file_height = part.file_size
    x = width / file_width
    y = height / file_height
    if not part.is_unchanged:
        # a data set that transforms the other images itself
        image, _ = part.render(size_hw)
        return Layer(image, (1.0, 1.0), place)
    image, reduction, origin = part.pixels(factor * max(x, y))
    x *= reduction
    y *= reduction
    corner = (place[0] - x * origin[0], place[1] - y * origin[1])
    return Layer(image, (x, y), corner)


def _joined(
    parts: Sequence[Sample],
    sizes: Sequence[tuple[int, int]],
    places: Sequence[tuple[int, int]],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the boxes of all tiles, and their fields.

    Args:
        parts: samples, whose boxes are in pixels of their files.
        sizes: (height, width) of their tiles.
        places: upper left corners (x, y) of the tiles.

    Returns:
        Boxes `[T, 4]`, xyxy in pixels of the canvas before its rotation, and the fields `[T]` of these boxes.
    """
    boxes = []
    fields: dict[str, list[np.ndarray]] = {name: [] for name in parts[0].fields}
    for part, (height, width), (x, y) in zip(parts, sizes, places):
        size = np.array([width, height, width, height], float)
        scaled = (part.boxes * (size / [*part.canvas, *part.canvas])).clip(
            0, size
        )
        kept = (scaled[:, 2:] > scaled[:, :2]).all(1)
        if not kept.all():
            part.lost["resampling"] += int((~kept).sum())
        boxes.append(scaled[kept] + [x, y, x, y])
        for name, values in fields.items():
            values.append(part.fields[name][kept])
    joined = {name: np.concatenate(values) for name, values in fields.items()}
    return np.concatenate(boxes), joined


def moved_boxes(
    boxes: np.ndarray,
    matrix: np.ndarray,
    shift: np.ndarray,
    canvas: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Map boxes by p -> matrix @ p + shift, and clip them to the canvas.

    A rotated box is treated as the ellipse inside it: the box around its four corners would be too large for
    objects that do not fill them (Kalra et al., Towards Rotation Invariance in Object Detection, 2021, arXiv
    2109.13488).

    >>> clipped, visible = moved_boxes(np.array([[0.0, 0, 10, 10]]), np.eye(2), np.array([5.0, 0]), (10, 10))
    >>> clipped.tolist(), visible.tolist()
    ([[5.0, 0.0, 10.0, 10.0]], [0.5])

    Args:
        boxes: `[T, 4]`, xyxy in pixels.
        matrix: `[2, 2]`.
        shift: `[2]` in pixels.
        canvas: (width, height).

    Returns:
        Boxes `[T, 4]`, xyxy in pixels inside the canvas, and the fraction of its area that each keeps, `[T]`
        in 0..1.
    """
    starts = boxes[:, :2]
    ends = boxes[:, 2:]
    centres = (starts + ends) / 2 @ matrix.T + shift
    half = np.sqrt(((ends - starts) / 2) ** 2 @ (matrix**2).T)
    moved = np.concatenate([centres - half, centres + half], 1)
    clipped = moved.clip(0, [*canvas, *canvas])
    areas = (clipped[:, 2:] - clipped[:, :2]).prod(1)
    full_areas = (2 * half).prod(1)
    return clipped, areas / np.maximum(full_areas, 1e-9)
