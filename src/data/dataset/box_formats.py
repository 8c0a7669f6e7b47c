"""Box formats: conversion to COCO's format, and detection of the format that a file most likely has.

A format is an order of the four numbers and a unit. COCO uses xywh in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Literal, NamedTuple, get_args

import numpy as np

Order = Literal["xywh", "xyxy", "cxcywh", "yxyx", "yxhw"]
"""x, y is the upper left corner; cx, cy the centre; the second x, y of xyxy is the lower right corner."""

Unit = Literal["pixels", "fraction", "percent", "permille"]
"""Pixels, or fractions of the image's sides from 0 to 1, from 0 to 100 and from 0 to 1000."""

_SCALE: dict[str, float] = {"fraction": 1.0, "percent": 100.0, "permille": 1000.0}

OUTSIDE_LIMIT = 0.01
"""Fraction of boxes entirely outside their image above which another format is looked for."""

BEYOND_LIMIT = 0.1
"""Fraction of boxes that reach far out of their image above which another format is looked for."""

LIKELY_FRACTION = 1 - OUTSIDE_LIMIT
"""Fraction of boxes that must fit into their images for a format to be likely."""

MIN_SUSPICIOUS_BOXES = 3
"""Minimum number of boxes that raise a suspicion."""

CENTRES_BEYOND = 10
"""Minimum number of boxes that reach out of their image on the right or below, while none does on the left or
above, for the suspicion that the first two numbers are centres."""

OVERHANG = 0.02
"""Fraction of a side, and at least two pixels, that a box may reach out of its image without raising a
suspicion."""


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
    BoxFormat(order, unit) for unit, order in product(get_args(Unit), get_args(Order))
]


def to_coco(boxes: np.ndarray, sizes: np.ndarray, given: BoxFormat) -> np.ndarray:
    """Convert boxes of a format to xywh in pixels.

    Args:
        boxes: `[M, 4]` float64.
        sizes: `[M, 2]`, (width, height) of each box's image in pixels.
        given: format of `boxes`.
    """
    if given.unit != "pixels":
        sides = sizes[:, ::-1] if given.order.startswith("y") else sizes
        boxes = boxes * np.tile(sides, 2) / _SCALE[given.unit]
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
        inside = (starts >= -slack).all(1) & (starts + extents <= sizes + slack).all(1)
    has_area = (extents > 0).all(1)
    return float((inside & has_area).mean())


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
    tiny = (np.abs(xywh) <= 1.01).all(1) & (sizes > 4).all(1)
    many_tiny = tiny.sum() >= max(MIN_SUSPICIOUS_BOXES, 0.5 * count)
    if many_tiny or (tiny.all() and (xywh % 1 != 0).any()):
        part = "all" if tiny.all() else f"{tiny.sum()} of"
        likely = _likely(xywh[tiny], sizes[tiny], "fraction")
        return Suspicion(
            f"{part} {count} boxes have numbers from 0 to 1, expected pixels", likely
        )
    unit = _relative_unit(xywh, sizes)
    if unit:
        likely = _likely(xywh, sizes, unit) + _likely(xywh, sizes, "pixels")
        found = (
            f"all {count} boxes lie within 0 to {_SCALE[unit]:g} and fill this range"
        )
        return Suspicion(f"{found}, although most images are larger", likely)
    return _suspect_places(xywh, sizes)


def _suspect_places(xywh: np.ndarray, sizes: np.ndarray) -> Suspicion | None:
    """Return evidence from boxes that lie outside their images or reach out of them."""
    count = len(xywh)
    outside, beyond = _outside_and_beyond(xywh, sizes)
    if outside <= OUTSIDE_LIMIT * count and beyond < max(
        MIN_SUSPICIOUS_BOXES, BEYOND_LIMIT * count
    ):
        return None
    likely = _likely(xywh, sizes, "pixels")
    if outside > OUTSIDE_LIMIT * count and (likely or outside >= MIN_SUSPICIOUS_BOXES):
        fills_permille = (
            0.8 * _SCALE["permille"] < xywh.max() <= 1.005 * _SCALE["permille"]
        )
        if not likely and fills_permille:
            likely = _likely(xywh, sizes, "permille")
        return Suspicion(
            f"{outside} of {count} boxes lie entirely outside their image", likely
        )
    if beyond >= max(MIN_SUSPICIOUS_BOXES, BEYOND_LIMIT * count):
        if beyond < CENTRES_BEYOND or (xywh[:, :2] < -1).any():
            likely = [given for given in likely if given.order != "cxcywh"]
        if likely:
            return Suspicion(
                f"{beyond} of {count} boxes reach out of their image", likely
            )
    return None


def _outside_and_beyond(xywh: np.ndarray, sizes: np.ndarray) -> tuple[int, int]:
    """Return the number of boxes entirely outside their image, and the number that reach far out of it."""
    low = xywh[:, :2]
    with np.errstate(over="ignore"):
        high = low + xywh[:, 2:]
        usable = (high > low).all(1)
        outside = usable & ((low >= sizes).any(1) | (high <= 0).any(1))
        overhang = np.maximum(high - sizes, -low)
    far = (overhang > np.maximum(2.0, OVERHANG * sizes)).any(1)
    return int(outside.sum()), int((usable & ~outside & far).sum())


def _likely(boxes: np.ndarray, sizes: np.ndarray, unit: str) -> list[BoxFormat]:
    """Return the formats with a unit under which nearly all boxes fit, best first.

    Formats with y first are rare: in pixels they are returned only if no other format fits.
    """
    scores: dict[BoxFormat, float] = {}
    for given in FORMATS:
        if given.unit == unit and given != COCO:
            score = fitting(to_coco(boxes, sizes, given), sizes)
            if score >= LIKELY_FRACTION:
                scores[given] = score
    best = sorted(scores, key=lambda given: -scores[given])
    y_first = [given for given in best if given.order.startswith("y")]
    usual = [given for given in best if given not in y_first]
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
        if (
            len(xywh) < relative.boxes
            or lowest < -0.01 * scale
            or highest > 1.005 * scale
        ):
            continue
        if (
            highest < min(relative.filled) * scale / 2
        ):  # no sum of start and extent fills the range
            continue
        larger = (np.sort(sizes, 1) >= np.multiply(relative.sides, scale)).all(1)
        spread = (np.ptp(starts, 0) > 0.2 * scale).all() and (
            starts.min(0) < 0.3 * scale
        ).all()
        if (
            larger.mean() > 0.9
            and spread
            and any(_fills(end, relative) for end in ends)
        ):
            return unit
    return None


_RELATIVE = {
    "percent": _Relative(100.0, boxes=20, sides=(2.0, 2.0), filled=(0.5, 0.8)),
    "permille": _Relative(1000.0, boxes=50, sides=(1.0, 1.5), filled=(0.9, 0.9)),
}


def _fills(ends: np.ndarray, relative: _Relative) -> bool:
    """Return whether the ends `[M, 2]` of boxes fill the range along both axes without leaving it."""
    furthest = np.sort(ends.max(0))
    limits = np.multiply(relative.filled, relative.scale)
    return bool((furthest >= limits).all() and furthest[1] <= 1.005 * relative.scale)


def _centred(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], 1)


def _cornered(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


_TO_XYWH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "xywh": lambda boxes: boxes,
    "xyxy": _cornered,
    "cxcywh": _centred,
    "yxyx": lambda boxes: _cornered(boxes[:, [1, 0, 3, 2]]),
    "yxhw": lambda boxes: boxes[:, [1, 0, 3, 2]],
}
