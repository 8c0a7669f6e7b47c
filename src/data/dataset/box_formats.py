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
"""Fraction of boxes wholly outside their image above which a file is not what it claims to be."""

BEYOND_LIMIT = 0.1
"""Fraction of boxes that reach beyond their image above which another format is looked for."""

FITS = 1 - OUTSIDE_LIMIT
"""Fraction of boxes that must fit into their images for a format to be likely."""

FEW, MANY = 3, 50
"""Boxes from which on a suspicion is raised; boxes that it takes where large numbers alone could be natural."""


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


def suspect(xywh: np.ndarray, sizes: np.ndarray, outside: int, beyond: int) -> Suspicion | None:
    """Look for signs that boxes are in another format than COCO's; None if there are none.

    Args:
        xywh: `[M, 4]`, the boxes as a file has them.
        sizes: `[M, 2]`, (width, height) of their images in pixels.
        outside: boxes that would lie wholly outside their image.
        beyond: boxes that would reach beyond it.
    """
    count = len(xywh)
    largest = float(np.abs(xywh).max(initial=0.0))
    if not count or not np.isfinite(largest):
        return None
    if largest <= 1.01 and sizes.min() > 4 and (count >= FEW or (xywh % 1 != 0).any()):
        return Suspicion(
            f"all {count} boxes have numbers from 0 to 1, expected pixels", _likely(xywh, sizes, ["fraction"])
        )
    if unit := _crowded_unit(xywh, sizes):
        return Suspicion(
            f"all {count} boxes lie within 0 to {_SCALE[unit]:g} although the images are at least "
            f"{int(sizes.min())} pixels wide and high",
            _likely(xywh, sizes, [unit]),
        )
    if outside > OUTSIDE_LIMIT * count:
        text = f"{outside} of {count} boxes lie wholly outside their image"
        fills_permille = 0.8 * _SCALE["permille"] < largest <= 1.005 * _SCALE["permille"]
        units = ["pixels", "permille"] if fills_permille else ["pixels"]
        return Suspicion(text, _likely(xywh, sizes, units))
    if beyond >= max(FEW, BEYOND_LIMIT * count):
        likely = _likely(xywh, sizes, ["pixels"])
        if likely:
            return Suspicion(f"{beyond} of {count} boxes reach out of their image", likely)
    return None


def _likely(boxes: np.ndarray, sizes: np.ndarray, units: list[str]) -> list[BoxFormat]:
    """Return the formats that nearly all boxes fit under, in the first of some units that has any; best first."""
    for unit in units:
        scores = {
            given: fitting(to_coco(boxes, sizes, given), sizes)
            for given in FORMATS
            if given.unit == unit and given != COCO
        }
        best = [given for given in scores if scores[given] >= FITS]
        if usual := [given for given in best if not given.order.startswith("y")]:  # y first is rare
            best = usual
        if best:
            return sorted(best, key=lambda given: -scores[given])
    return []


def _crowded_unit(xywh: np.ndarray, sizes: np.ndarray) -> str | None:
    """Return percent or permille if the boxes fill that range and nothing beyond it, in images far larger; else None."""
    if len(xywh) < MANY or (xywh < -1).any():
        return None
    largest = float(xywh.max())
    reach = float((xywh[:, :2] + xywh[:, 2:]).max())
    for unit in ("percent", "permille"):
        end = _SCALE[unit]
        if max(largest, reach) > 0.8 * end and largest <= 1.005 * end and sizes.min() >= 3 * end:
            return unit
    return None


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
