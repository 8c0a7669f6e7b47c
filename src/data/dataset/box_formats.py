"""Box formats: conversion to COCO's format, and detection of the format that a file most likely has.

A format is an order of the four numbers and a unit. COCO uses xywh in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Literal, NamedTuple, get_args

import numpy as np

Order = Literal["xywh", "xyxy", "cxcywh", "yxyx", "yxhw"]
"""x, y is the upper left corner, and cx, cy is the centre.

The second x, y of xyxy is the lower right corner.
"""

Unit = Literal["pixels", "fraction", "percent", "permille"]
"""Pixels, or parts of the image's sides: from 0 to 1, from 0 to 100, or from 0 to 1000."""

_SCALE: dict[str, float] = {
    "fraction": 1.0,
    "percent": 100.0,
    "permille": 1000.0,
}

OUTSIDE_LIMIT = 0.01
"""Fraction of boxes entirely outside their image above which another format is looked for."""

BEYOND_LIMIT = 0.1
"""Fraction of boxes that reach far out of their image above which another format is looked for."""

LIKELY_FRACTION = 1 - OUTSIDE_LIMIT
"""Fraction of boxes that must fit into their images for a format to be likely."""

MIN_SUSPICIOUS_BOXES = 3
"""Minimum number of boxes that raise a suspicion."""

CENTRES_BEYOND = 10
"""Minimum number of boxes for the suspicion that their first two numbers are centres.

These boxes reach out of their image on the right or below, while none does on the left or above.
"""

OVERHANG = 0.02
"""Fraction of a side that a box may reach out of its image without raising a suspicion.

At least two pixels are always allowed.
"""


class _Relative(NamedTuple):
    """Conditions under which numbers that could be pixels are treated as percent or permille of the image.

    The boxes must fill the range of the unit, and the images must be larger than this range.
    """

    scale: float
    """Upper end of the range."""
    boxes: int
    """Minimum number of boxes."""
    sides: tuple[float, float]
    """Minimum of the shorter and of the longer side of nearly all images, in units of the range."""
    filled: tuple[float, float]
    """Minimum extent of all boxes along the less filled and the better filled axis, in units of the range."""


class BoxFormat(NamedTuple):
    """An order and a unit."""

    order: Order = "xywh"
    unit: Unit = "pixels"

    def __str__(self) -> str:
        if self.unit == "pixels":
            return f"{self.order} in pixels"
        return f"{self.order} in {self.unit} of the image"


COCO = BoxFormat()

FORMATS = [
    BoxFormat(order, unit)
    for unit, order in product(get_args(Unit), get_args(Order))
]


def to_coco(
    boxes: np.ndarray,
    sizes: np.ndarray,
    given: BoxFormat,
) -> np.ndarray:
    """Convert boxes of a format to xywh in pixels.

    Args:
        boxes: `[M, 4]` float64.
        sizes: `[M, 2]`, (width, height) of each box's image in pixels.
        given: format of `boxes`.
    """
    if given.unit != "pixels":
        if given.order.startswith("y"):
            sizes = sizes[:, [1, 0]]
        boxes = boxes * np.tile(sizes, 2) / _SCALE[given.unit]
    return _TO_XYWH[given.order](boxes)


def fitting(xywh: np.ndarray, sizes: np.ndarray) -> float:
    """Return the fraction of boxes, xywh in pixels, that have an area and fit into their images.

    The tolerance is a hundredth of the side, and at least one pixel.
    """
    if not len(xywh):
        return 0.0
    starts = xywh[:, :2]
    extents = xywh[:, 2:]
    slack = np.maximum(1.0, 0.01 * sizes)
    with np.errstate(over="ignore", invalid="ignore"):
        ends = starts + extents
        starts_inside = (starts >= -slack).all(1)
        ends_inside = (ends <= sizes + slack).all(1)
    has_area = (extents > 0).all(1)
    return float((starts_inside & ends_inside & has_area).mean())


class Suspicion(NamedTuple):
    """Evidence that boxes are not in COCO's format, and the formats that they may have."""

    what: str
    """Description of the evidence; follows the name of a file in messages."""
    likely: list[BoxFormat]
    """Formats under which nearly all boxes fit into their images, best first."""


def suspect(xywh: np.ndarray, sizes: np.ndarray) -> Suspicion | None:
    """Return evidence that boxes are in another format than COCO's, or None if there is none.

    Args:
        xywh: `[M, 4]`, the boxes as a file has them.
        sizes: `[M, 2]`, (width, height) of their images in pixels.
    """
    count = len(xywh)
    if not count or not np.isfinite(xywh).all():
        return None
    large_image = (sizes > 4).all(1)
    tiny = (np.abs(xywh) <= 1.01).all(1) & large_image
    all_tiny = tiny.all()
    many_tiny = tiny.sum() >= max(MIN_SUSPICIOUS_BOXES, 0.5 * count)
    if many_tiny or (all_tiny and (xywh % 1 != 0).any()):
        part = "all" if all_tiny else f"{tiny.sum()} of"
        what = f"{part} {count} boxes have numbers from 0 to 1, expected pixels"
        likely = _likely(xywh[tiny], sizes[tiny], "fraction")
        return Suspicion(what, likely)
    unit = _relative_unit(xywh, sizes)
    if unit:
        likely = _likely(xywh, sizes, unit) + _likely(xywh, sizes, "pixels")
        what = f"all {count} boxes lie within 0 to {_SCALE[unit]:g} and fill this range"
        return Suspicion(f"{what}, although most images are larger", likely)
    return _suspect_places(xywh, sizes)


def _suspect_places(xywh: np.ndarray, sizes: np.ndarray) -> Suspicion | None:
    """Return evidence from boxes that lie outside their images or reach out of them."""
    count = len(xywh)
    outside, beyond = _outside_and_beyond(xywh, sizes)
    many_outside = outside > OUTSIDE_LIMIT * count
    many_beyond = beyond >= max(MIN_SUSPICIOUS_BOXES, BEYOND_LIMIT * count)
    if not many_outside and not many_beyond:
        return None
    likely = _likely(xywh, sizes, "pixels")
    if many_outside and (likely or outside >= MIN_SUSPICIOUS_BOXES):
        scale = _SCALE["permille"]
        if not likely and 0.8 * scale < xywh.max() <= 1.005 * scale:
            likely = _likely(xywh, sizes, "permille")
        what = f"{outside} of {count} boxes lie entirely outside their image"
        return Suspicion(what, likely)
    if not many_beyond:
        return None
    if beyond < CENTRES_BEYOND or (xywh[:, :2] < -1).any():
        likely = [given for given in likely if given.order != "cxcywh"]
    if not likely:
        return None
    return Suspicion(
        f"{beyond} of {count} boxes reach out of their image", likely
    )


def _outside_and_beyond(xywh: np.ndarray, sizes: np.ndarray) -> tuple[int, int]:
    """Return the number of boxes entirely outside their image, and the number that reach far out of it."""
    low = xywh[:, :2]
    with np.errstate(over="ignore"):
        high = low + xywh[:, 2:]
        usable = (high > low).all(1)
        starts_behind = (low >= sizes).any(1)
        ends_before = (high <= 0).any(1)
        overhang = np.maximum(high - sizes, -low)
    outside = usable & (starts_behind | ends_before)
    allowed = np.maximum(2.0, OVERHANG * sizes)
    beyond = usable & ~outside & (overhang > allowed).any(1)
    return int(outside.sum()), int(beyond.sum())


def _likely(
    boxes: np.ndarray,
    sizes: np.ndarray,
    unit: str,
) -> list[BoxFormat]:
    """Return the formats with a unit under which nearly all boxes fit, best first.

    Formats with y first are rare: in pixels they are returned only if no other format fits.
    """
    scores: dict[BoxFormat, float] = {}
    for given in FORMATS:
        if given.unit == unit and given != COCO:
            score = fitting(to_coco(boxes, sizes, given), sizes)
            if score >= LIKELY_FRACTION:
                scores[given] = score
    usual: list[BoxFormat] = []
    y_first: list[BoxFormat] = []
    for given in sorted(scores, key=lambda given: -scores[given]):
        part = y_first if given.order.startswith("y") else usual
        part.append(given)
    if unit == "pixels" and usual:
        return usual
    return usual + y_first


def _relative_unit(xywh: np.ndarray, sizes: np.ndarray) -> str | None:
    """Return percent or permille if the boxes fill this range and the images are larger; otherwise None."""
    starts = xywh[:, :2]
    extents = xywh[:, 2:]
    # the ends of boxes for xyxy, xywh and cxcywh
    ends = [extents, starts + extents, starts + extents / 2]
    lowest = xywh.min()
    highest = xywh.max()
    for unit, relative in _RELATIVE.items():
        scale = relative.scale
        if len(xywh) < relative.boxes:
            continue
        if lowest < -0.01 * scale or highest > 1.005 * scale:
            continue
        if highest < min(relative.filled) * scale / 2:
            continue  # no sum of start and extent fills the range
        larger = np.sort(sizes, 1) >= np.multiply(relative.sides, scale)
        if larger.all(1).mean() <= 0.9:
            continue
        spread = np.ptp(starts, 0) > 0.2 * scale
        near_zero = starts.min(0) < 0.3 * scale
        if not spread.all() or not near_zero.all():
            continue
        if any(_fills(end, relative) for end in ends):
            return unit
    return None


_RELATIVE = {
    "percent": _Relative(
        100.0,
        boxes=20,
        sides=(2.0, 2.0),
        filled=(0.5, 0.8),
    ),
    "permille": _Relative(
        1000.0,
        boxes=50,
        sides=(1.0, 1.5),
        filled=(0.9, 0.9),
    ),
}


def _fills(ends: np.ndarray, relative: _Relative) -> bool:
    """Return whether the ends `[M, 2]` of boxes fill the range along both axes without leaving it."""
    furthest = np.sort(ends.max(0))
    required = np.multiply(relative.filled, relative.scale)
    if furthest.max() > 1.005 * relative.scale:
        return False
    return bool((furthest >= required).all())


def _centred(boxes: np.ndarray) -> np.ndarray:
    """Convert cxcywh to xywh."""
    centres = boxes[:, :2]
    extents = boxes[:, 2:]
    return np.concatenate([centres - extents / 2, extents], 1)


def _cornered(boxes: np.ndarray) -> np.ndarray:
    """Convert xyxy to xywh."""
    first = boxes[:, :2]
    second = boxes[:, 2:]
    return np.concatenate([first, second - first], 1)


def _swapped(boxes: np.ndarray) -> np.ndarray:
    """Convert y first to x first."""
    return boxes[:, [1, 0, 3, 2]]


_TO_XYWH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "xywh": lambda boxes: boxes,
    "xyxy": _cornered,
    "cxcywh": _centred,
    "yxyx": lambda boxes: _cornered(_swapped(boxes)),
    "yxhw": _swapped,
}
