"""How four numbers describe a box: COCO's way, the other common ways, and which of them a file most likely has.

A format is an order of the numbers and a unit. COCO has xywh in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np

Order = Literal["xywh", "xyxy", "cxcywh", "yxyx", "yxhw"]
"""x, y: the upper left corner, or after cx, cy the centre; the second x, y of xyxy is the lower right corner."""

Unit = Literal["pixels", "fraction", "percent", "permille"]
"""Fractions of the image's sides from 0 to 1; the same from 0 to 100 and from 0 to 1000."""

_SCALE: dict[str, float] = {"fraction": 1.0, "percent": 100.0, "permille": 1000.0}

OUTSIDE_LIMIT = 0.01
"""Fraction of boxes wholly outside their image above which another format is looked for."""

BEYOND_LIMIT = 0.1
"""Fraction of boxes that reach far out of their image above which another format is looked for."""

LIKELY_FRACTION = 1 - OUTSIDE_LIMIT
"""Fraction of boxes that must fit into their images for a format to be likely."""

MIN_SUSPICIOUS_BOXES = 3
"""Minimum number of boxes that raise a suspicion."""

CENTRES_BEYOND = 10
"""Minimum number of boxes that reach out of their image to the right or downwards, while none does to the left or upwards, for the
suspicion that the first two numbers are centres."""

OVERHANG = 0.02
"""Fraction of a side, and at least two pixels, by which a box may reach out of its image without being a sign of another format."""


class _Relative(NamedTuple):
    """When numbers that could be pixels are taken for parts of the image: boxes fill the range of a unit, and images are larger."""

    scale: float
    """End of the range."""
    boxes: int
    """Minimum number of boxes."""
    sides: tuple[float, float]
    """Minimum of the shorter and the longer side of nearly all images, in units of the range."""
    filled: tuple[float, float]
    """Minimum extent of all boxes along the less and the better filled axis, in units of the range."""


class BoxFormat(NamedTuple):
    """An order and a unit."""

    order: Order = "xywh"
    unit: Unit = "pixels"

    def __str__(self) -> str:
        return f"{self.order} in {self.unit if self.unit == 'pixels' else f'{self.unit} of the image'}"


COCO = BoxFormat()

FORMATS = [BoxFormat(order, unit) for unit in get_args(Unit) for order in get_args(Order)]


def to_coco(boxes: np.ndarray, sizes: np.ndarray, given: BoxFormat) -> np.ndarray:
    """Convert boxes of a format to xywh in pixels.

    Args:
        boxes: `[M, 4]` float64.
        sizes: `[M, 2]`, (width, height) of each box's image in pixels.
        given: the format of `boxes`.
    """
    if given.unit != "pixels":
        sides = np.tile(sizes, 2) if not given.order.startswith("y") else np.tile(sizes[:, ::-1], 2)
        boxes = boxes * sides / _SCALE[given.unit]
    return _TO_XYWH[given.order](boxes)


def fitting(xywh: np.ndarray, sizes: np.ndarray) -> float:
    """Return the fraction of boxes, xywh in pixels, that have an area and lie in their images but for a pixel or a hundredth."""
    if not len(xywh):
        return 0.0
    slack = np.maximum(1.0, 0.01 * sizes)
    with np.errstate(over="ignore", invalid="ignore"):
        inside = (xywh[:, :2] >= -slack).all(1) & (xywh[:, :2] + xywh[:, 2:] <= sizes + slack).all(1)
    return float((inside & (xywh[:, 2:] > 0).all(1)).mean())


class Suspicion(NamedTuple):
    """Why boxes are not what COCO has, and what they may be."""

    what: str
    """Says what was found, to follow the name of a file."""
    likely: list[BoxFormat]
    """Formats under which nearly all boxes fit into their images, best first."""


def suspect(xywh: np.ndarray, sizes: np.ndarray) -> Suspicion | None:
    """Look for signs that boxes are in another format than COCO's; None if there are none.

    Args:
        xywh: `[M, 4]`, the boxes as a file has them.
        sizes: `[M, 2]`, (width, height) of their images in pixels.
    """
    count = len(xywh)
    if not count or not np.isfinite(xywh).all():
        return None
    tiny = (np.abs(xywh) <= 1.01).all(1) & (sizes > 4).all(1)
    if tiny.sum() >= max(MIN_SUSPICIOUS_BOXES, 0.5 * count) or (tiny.all() and (xywh % 1 != 0).any()):
        return Suspicion(
            f"{'all' if tiny.all() else f'{tiny.sum()} of'} {count} boxes have numbers from 0 to 1, expected pixels",
            _likely(xywh[tiny], sizes[tiny], "fraction"),
        )
    if unit := _relative_unit(xywh, sizes):
        return Suspicion(
            f"all {count} boxes lie within 0 to {_SCALE[unit]:g} and fill this range, although most images are larger",
            [*_likely(xywh, sizes, unit), *_likely(xywh, sizes, "pixels")],
        )
    outside, beyond = _outside_and_beyond(xywh, sizes)
    if outside <= OUTSIDE_LIMIT * count and beyond < max(MIN_SUSPICIOUS_BOXES, BEYOND_LIMIT * count):
        return None
    likely = _likely(xywh, sizes, "pixels")
    if outside > OUTSIDE_LIMIT * count and (likely or outside >= MIN_SUSPICIOUS_BOXES):
        fills_permille = 0.8 * _SCALE["permille"] < xywh.max() <= 1.005 * _SCALE["permille"]
        if not likely and fills_permille:
            likely = _likely(xywh, sizes, "permille")
        return Suspicion(f"{outside} of {count} boxes lie wholly outside their image", likely)
    if beyond >= max(MIN_SUSPICIOUS_BOXES, BEYOND_LIMIT * count):
        if beyond < CENTRES_BEYOND or (xywh[:, :2] < -1).any():
            likely = [given for given in likely if given.order != "cxcywh"]
        if likely:
            return Suspicion(f"{beyond} of {count} boxes reach out of their image", likely)
    return None


def _outside_and_beyond(xywh: np.ndarray, sizes: np.ndarray) -> tuple[int, int]:
    """Return the number of boxes that lie wholly outside their image, and of those that reach far out of it."""
    with np.errstate(over="ignore"):
        low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
        usable = (high > low).all(1)
        outside = usable & ((low >= sizes).any(1) | (high <= 0).any(1))
        overhang = np.maximum(high - sizes, -low)
    far = (overhang > np.maximum(2.0, OVERHANG * sizes)).any(1)
    return int(outside.sum()), int((usable & ~outside & far).sum())


def _likely(boxes: np.ndarray, sizes: np.ndarray, unit: str) -> list[BoxFormat]:
    """Return the formats of a unit that nearly all boxes fit under, best first.

    Formats with y first are rare: in pixels they count only if no other format fits.
    """
    formats = [given for given in FORMATS if given.unit == unit and given != COCO]
    scores = {given: fitting(to_coco(boxes, sizes, given), sizes) for given in formats}
    best = sorted(
        (given for given in formats if scores[given] >= LIKELY_FRACTION), key=lambda given: -scores[given]
    )
    usual = [given for given in best if not given.order.startswith("y")]
    if unit == "pixels" and usual:
        return usual
    return [*usual, *(given for given in best if given not in usual)]


def _relative_unit(xywh: np.ndarray, sizes: np.ndarray) -> str | None:
    """Return percent or permille if the boxes fill that range, in images that are larger; else None."""
    starts, extents = xywh[:, :2], xywh[:, 2:]
    ends = [
        extents,
        starts + extents,
        starts + extents / 2,
    ]  # of corners, of sizes from a corner, of sizes around a centre
    lowest, highest = xywh.min(), xywh.max()
    for unit, relative in _RELATIVE.items():
        scale = relative.scale
        if len(xywh) < relative.boxes or lowest < -0.01 * scale or highest > 1.005 * scale:
            continue
        if highest < min(relative.filled) * scale / 2:  # starts and extents add up to too little
            continue
        larger = (np.sort(sizes, 1) >= np.multiply(relative.sides, scale)).all(1).mean() > 0.9
        spread = (np.ptp(starts, 0) > 0.2 * scale).all() and (starts.min(0) < 0.3 * scale).all()
        if larger and spread and any(_fills(end, relative) for end in ends):
            return unit
    return None


_RELATIVE = {
    "percent": _Relative(100.0, boxes=20, sides=(2.0, 2.0), filled=(0.5, 0.8)),
    "permille": _Relative(1000.0, boxes=50, sides=(1.0, 1.5), filled=(0.9, 0.9)),
}


def _fills(ends: np.ndarray, relative: _Relative) -> bool:
    """Tell whether the ends `[M, 2]` of boxes fill the range along both axes, and do not leave it."""
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
