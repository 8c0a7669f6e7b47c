"""Transforms that move pixels and boxes together. Distributions follow torchvision v2 unless noted
otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core.errors import ConfigError
from ...core.registry import register
from .sample import Sample


@register()
class RandomZoomOut:
    """Place the image at a random position on a larger canvas (SSD, Liu et al., 2016).

    >>> image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    >>> sample = Sample(image, np.zeros((0, 4)), {}, {}, np.random.default_rng(0))
    >>> RandomZoomOut(side_range=(2.0, 2.0), p=1.0)(sample)
    >>> sample.canvas
    (80, 40)
    """

    def __init__(
        self,
        fill: float = 0,
        side_range: Sequence[float] = (1.0, 4.0),
        p: float = 0.5,
    ) -> None:
        """Store the settings.

        Args:
            fill: grey value around the image, 0..255.
            side_range: minimum and maximum ratio of the canvas to the image, at least 1.
            p: probability of the transform.
        """
        if len(side_range) != 2 or not 1 <= side_range[0] <= side_range[1]:
            raise ConfigError(
                f"RandomZoomOut.side_range is {list(side_range)}, expected two numbers from 1, "
                "the smaller first"
            )
        _check_probability("RandomZoomOut", p)
        self.fill = fill
        self.side_range = tuple(side_range)
        self.p = p

    def __call__(self, sample: Sample) -> None:
        """Enlarge the canvas of a sample."""
        if sample.rng.random() >= self.p:
            return
        side, right, down = sample.rng.random(3)
        ratio = self.side_range[0] + side * (
            self.side_range[1] - self.side_range[0]
        )
        width, height = sample.canvas
        canvas = (int(width * ratio), int(height * ratio))
        left = int((canvas[0] - width) * right)
        top = int((canvas[1] - height) * down)
        sample.move((1, 1), (left, top), canvas)
        sample.fill = self.fill


@register()
class RandomIoUCrop:
    """Crop so that a box keeps at least a random overlap with the crop (SSD).

    Boxes whose centre is outside the crop are dropped.

    >>> image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    >>> sample = Sample(image, np.array([[40.0, 40, 60, 60]]), {}, {}, np.random.default_rng(3))
    >>> RandomIoUCrop(max_scale=0.5, sampler_options=[0.1, 1.0])(sample)
    >>> sample.canvas, sample.boxes.tolist()
    ((46, 41), [[35.0, 15.0, 46.0, 35.0]])
    """

    def __init__(
        self,
        min_scale: float = 0.3,
        max_scale: float = 1.0,
        min_aspect_ratio: float = 0.5,
        max_aspect_ratio: float = 2.0,
        sampler_options: Sequence[float] | None = None,
        trials: int = 40,
        p: float = 1.0,
    ) -> None:
        """Store the settings.

        Args:
            min_scale: minimum side of the crop relative to the image.
            max_scale: maximum side.
            min_aspect_ratio: minimum width / height of the crop.
            max_aspect_ratio: maximum width / height.
            sampler_options: overlaps to draw from; a value of 1 or more leaves the image unchanged.
            trials: crops to try for each overlap.
            p: probability of the transform.
        """
        _check_probability("RandomIoUCrop", p)
        if not 0 < min_scale <= max_scale <= 1:
            raise ConfigError(
                f"RandomIoUCrop: expected 0 < min_scale {min_scale} <= max_scale {max_scale} <= 1"
            )
        self.scale = (min_scale, max_scale)
        self.aspect = (min_aspect_ratio, max_aspect_ratio)
        self.options = tuple(
            sampler_options or (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
        )
        if max(self.options) < 1:
            raise ConfigError(
                f"RandomIoUCrop.sampler_options is {list(self.options)}, expected a value of at "
                "least 1 among them, which ends the search"
            )
        self.trials = trials
        self.p = p

    def __call__(self, sample: Sample) -> None:
        """Crop a sample, unless it has no boxes."""
        if sample.rng.random() >= self.p or not len(sample.boxes):
            return
        crop = None
        while crop is None:
            min_iou = self.options[sample.rng.integers(len(self.options))]
            if min_iou >= 1:
                return
            crop = self._find_crop(sample, min_iou)
        left, top, right, bottom = crop
        centres = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2
        inside = (centres > crop[:2]) & (centres < crop[2:])
        sample.keep(inside.all(1))
        canvas = (int(right - left), int(bottom - top))
        sample.move((1, 1), (-left, -top), canvas)

    def _find_crop(self, sample: Sample, min_iou: float) -> np.ndarray | None:
        """Draw all trials at once, and return the first suitable crop, xyxy, or None."""
        size = np.array(sample.canvas)
        draws = sample.rng.random((self.trials, 4))
        low, high = self.scale
        sides = (size * (low + (high - low) * draws[:, :2])).astype(
            int
        )  # [n, 2]
        corner = ((size - sides) * draws[:, 2:]).astype(int)
        crops = np.concatenate([corner, corner + sides], 1).astype(float)
        positive = (sides > 0).all(1)
        aspect = sides[:, 0] / np.maximum(sides[:, 1], 1)
        fits = (
            positive & (aspect >= self.aspect[0]) & (aspect <= self.aspect[1])
        )
        crops = crops[fits]
        first = _first_with_an_object(crops, sample.boxes, min_iou)
        return None if first is None else crops[first]


PAIRS_AT_ONCE = 4096
"""Number, about, of pairs of crops and boxes that are compared before the next crops are considered."""

_ROUNDING = 1 - 1e-9
"""Factor that makes a limit tolerant of rounding errors."""


def _first_with_an_object(
    crops: np.ndarray, boxes: np.ndarray, min_iou: float
) -> int | None:
    """Return the first of the crops `[n, 4]` that contains the centre of a box `[T, 4]` and has a minimum IoU
    with it, or None.

    Crops and boxes are xyxy. A box of area a cannot have a larger IoU than a / c with a crop of area c, so
    small boxes are left out first.
    """
    if not len(crops):
        return None
    crop_areas = (crops[:, 2] - crops[:, 0]) * (crops[:, 3] - crops[:, 1])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    is_possible = areas >= min_iou * crop_areas.min() * _ROUNDING
    areas = areas[is_possible]
    if not len(areas):
        return None
    left, top, right, bottom = boxes[is_possible].T
    x = (left + right) / 2
    y = (top + bottom) / 2
    step = max(1, PAIRS_AT_ONCE // len(areas))
    for begin in range(0, len(crops), step):
        block = slice(begin, begin + step)
        x0, y0, x1, y1 = crops[block].T[..., None]  # [n, 1] each
        inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)  # [n, T]
        width = np.minimum(right, x1) - np.maximum(left, x0)
        height = np.minimum(bottom, y1) - np.maximum(top, y0)
        overlap = width.clip(0) * height.clip(0)
        iou = overlap / (areas + crop_areas[block, None] - overlap)
        suitable = (inside & (iou >= min_iou)).any(1)
        if suitable.any():
            return begin + int(suitable.argmax())
    return None


@register()
class RandomHorizontalFlip:
    """Flip the image horizontally.

    >>> image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    >>> sample = Sample(image, np.array([[0.0, 0, 10, 20]]), {}, {}, np.random.default_rng(0))
    >>> RandomHorizontalFlip(p=1.0)(sample)
    >>> sample.boxes.tolist()
    [[30.0, 0.0, 40.0, 20.0]]
    """

    def __init__(self, p: float = 0.5) -> None:
        """Store the probability."""
        _check_probability("RandomHorizontalFlip", p)
        self.p = p

    def __call__(self, sample: Sample) -> None:
        """Flip a sample."""
        if sample.rng.random() < self.p:
            sample.move((-1, 1), (sample.canvas[0], 0), sample.canvas)


@register()
class RandomCrop:
    """Crop a window of fixed size at a random place; an image smaller than the window is padded first.

    >>> image = torch.zeros(3, 200, 100, dtype=torch.uint8)
    >>> sample = Sample(image, np.zeros((0, 4)), {}, {}, np.random.default_rng(0))
    >>> RandomCrop([64, 128])(sample)
    >>> sample.canvas
    (128, 64)
    """

    def __init__(self, size: Sequence[int], fill: float = 0) -> None:
        """Store (height, width) of the window and the grey value of the padding."""
        self.size = _height_width("RandomCrop", size)
        self.fill = fill

    def __call__(self, sample: Sample) -> None:
        """Crop a sample."""
        height, width = self.size
        free = np.array(sample.canvas) - (width, height)
        drawn = (sample.rng.random(2) * (free + 1)).astype(int)
        corner = np.where(free > 0, drawn, 0)
        sample.move((1, 1), tuple(-corner), (width, height))
        sample.fill = self.fill


@register()
class Resize:
    """Resize the canvas to a fixed size; the aspect ratio is not kept.

    >>> boxes = np.array([[0.0, 0.0, 20.0, 10.0]])
    >>> Resize([20, 80]).track(boxes, np.array([[40.0, 20.0]]))[0].tolist()
    [[0.0, 0.0, 40.0, 10.0]]
    """

    drops = "without area"

    def __init__(self, size: Sequence[int]) -> None:
        """Store (height, width)."""
        self.size = _height_width("Resize", size)

    def __call__(self, sample: Sample) -> None:
        """Resize a sample."""
        height, width = self.size
        old_width, old_height = sample.canvas
        sample.move(
            (width / old_width, height / old_height), (0, 0), (width, height)
        )

    def track(
        self, boxes: np.ndarray, canvas: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Follow boxes (`compose.Tracked`)."""
        height, width = self.size
        size = np.array([width, height], float)
        resized = boxes * np.tile(size / canvas, 2)
        canvas = np.tile(size, (len(boxes), 1))
        kept = np.ones(len(boxes), bool)
        return resized, canvas, kept


@register()
class PadToSize:
    """Add a margin on the right and at the bottom up to a fixed size; larger images are cropped.

    >>> image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    >>> sample = Sample(image, np.array([[10.0, 5, 30, 15]]), {}, {}, np.random.default_rng(0))
    >>> PadToSize([64, 64])(sample)
    >>> sample.canvas, sample.boxes.tolist()
    ((64, 64), [[10.0, 5.0, 30.0, 15.0]])
    """

    drops = "beyond the border"

    def __init__(self, size: Sequence[int], fill: float = 0) -> None:
        """Store (height, width) and the grey value of the margin."""
        self.size = _height_width("PadToSize", size)
        self.fill = fill

    def __call__(self, sample: Sample) -> None:
        """Pad a sample."""
        height, width = self.size
        sample.move((1, 1), (0, 0), (width, height))
        sample.fill = self.fill

    def track(
        self, boxes: np.ndarray, canvas: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Follow boxes (`compose.Tracked`)."""
        height, width = self.size
        size = np.array([width, height], float)
        boxes = boxes.clip(0, np.tile(size, 2))
        canvas = np.tile(size, (len(boxes), 1))
        kept = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
        return boxes, canvas, kept


@register()
class SanitizeBoundingBoxes:
    """Drop boxes that have become too small to learn from.

    >>> image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    >>> boxes = np.array([[10.0, 5, 30, 15], [0, 0, 20, 0.5]])
    >>> sample = Sample(image, boxes, {}, {}, np.random.default_rng(0))
    >>> SanitizeBoundingBoxes(min_size=1)(sample)
    >>> sample.boxes.tolist()
    [[10.0, 5.0, 30.0, 15.0]]
    """

    def __init__(self, min_size: float = 1) -> None:
        """Store the minimum width and height in pixels of the canvas."""
        self.min_size = min_size

    def __call__(self, sample: Sample) -> None:
        """Drop the small boxes of a sample."""
        sample.keep(self._large_enough(sample.boxes))

    @property
    def drops(self) -> str:
        """Description of the boxes that it drops."""
        unit = "pixel" if self.min_size == 1 else "pixels"
        return f"smaller than {self.min_size:g} {unit}"

    def track(
        self, boxes: np.ndarray, canvas: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Follow boxes (`compose.Tracked`)."""
        return boxes, canvas, self._large_enough(boxes)

    def _large_enough(self, boxes: np.ndarray) -> np.ndarray:
        sides = boxes[:, 2:] - boxes[:, :2]
        return (sides >= self.min_size).all(1)


def _check_probability(name: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ConfigError(f"{name}.p is {p}, expected 0 to 1")


def _height_width(name: str, size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(
            f"{name}.size is {list(size)}, expected [height, width] in pixels"
        )
    return int(size[0]), int(size[1])
