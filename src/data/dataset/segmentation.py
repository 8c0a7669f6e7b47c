"""Boxes around polygons and masks of COCO annotations."""

from __future__ import annotations

import math
import operator
from itertools import chain
from typing import Any

import numpy as np

Box = list[float]
"""x, y, width, height in pixels."""


def box_of_segmentation(segmentation: Any) -> Box | None:
    """Return the box around a polygon, several polygons or a mask; None if there is none or it has no area.

    Args:
        segmentation: as in COCO, lists `[x1, y1, x2, y2, ...]`, or a run-length encoded mask `{"size":
            [height, width], "counts": ...}` whose counts are numbers or compressed text. A single list of
            coordinates, a list of points `[x, y]`, and a list of masks are also accepted. Rings with fewer
            than three points are skipped.
    """
    if isinstance(segmentation, dict):
        return _around_mask(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    if all(isinstance(part, dict) for part in segmentation):
        boxes = [_around_mask(mask) for mask in segmentation]
        return _around_boxes([box for box in boxes if box is not None])
    return _around_rings(_rings(segmentation))


def mask_size(segmentation: Any) -> tuple[int, int] | None:
    """Return (width, height) of the image that a mask was made for; None for polygons."""
    if isinstance(segmentation, list) and segmentation:
        segmentation = segmentation[0]
    if not isinstance(segmentation, dict):
        return None
    size = _size(segmentation.get("size"))
    if size is None:
        return None
    height, width = size
    return width, height


def _rings(polygons: list[Any]) -> list[Any]:
    """Return lists of numbers x1, y1, x2, y2, ... for any accepted form of polygons."""
    if not isinstance(polygons[0], list):
        return [polygons]
    if len(polygons) > 2 and all(map(_is_point, polygons)):
        return [list(chain.from_iterable(polygons))]
    return polygons


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _around_rings(rings: list[Any]) -> Box | None:
    boxes = []
    for ring in rings:
        if not isinstance(ring, list) or len(ring) % 2:
            return None
        if not all(map(_is_coordinate, ring)):
            return None
        if len(ring) >= 6:
            xs = ring[0::2]
            ys = ring[1::2]
            left = min(xs)
            top = min(ys)
            boxes.append([left, top, max(xs) - left, max(ys) - top])
    return _around_boxes(boxes)


def _around_boxes(boxes: list[Box]) -> Box | None:
    if not boxes:
        return None
    lefts, tops, widths, heights = zip(*boxes)
    x1 = min(lefts)
    y1 = min(tops)
    x2 = max(map(operator.add, lefts, widths))
    y2 = max(map(operator.add, tops, heights))
    if x2 <= x1 or y2 <= y1:
        return None
    return list(map(float, (x1, y1, x2 - x1, y2 - y1)))


def _is_coordinate(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _around_mask(mask: dict[str, Any]) -> Box | None:
    """Return the box of a run-length encoded mask.

    The runs go down the columns; background and foreground alternate, beginning with background.
    """
    size = _size(mask.get("size"))
    runs = mask.get("counts")
    if isinstance(runs, str):
        runs = _decompressed(runs)
    if size is None or not isinstance(runs, list):
        return None
    if not all(map(_is_run, runs)):
        return None
    height, width = size
    ends = np.cumsum(np.array(runs, np.int64))
    if not len(ends) or ends[-1] != height * width:
        return None
    starts = ends - runs
    first = _of_foreground(starts)
    last = _of_foreground(ends) - 1
    not_empty = last >= first
    if not not_empty.any():
        return None
    first = first[not_empty]
    last = last[not_empty]
    first_column = first // height
    last_column = last // height
    x1 = first_column.min()
    x2 = last_column.max() + 1
    y1 = 0
    y2 = height
    if (
        first_column == last_column
    ).all():  # no run continues in the next column
        y1 = (first % height).min()
        y2 = (last % height).max() + 1
    return list(map(float, (x1, y1, x2 - x1, y2 - y1)))


def _of_foreground(runs: np.ndarray) -> np.ndarray:
    """Return the values of every second run."""
    return runs[1::2]


def _is_run(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return 0 <= value < 1 << 40


def _decompressed(text: str) -> list[int] | None:
    """Return the runs of COCO's compressed form, or None if the text is not valid.

    A character holds five bits, the lowest first. The fourth and later runs are differences to the run two
    before. Source: `rleFrString` of the COCO API.
    """
    runs: list[int] = []
    value = 0
    shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more to come
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
        value = 0
        shift = 0
    return None if shift else runs


def _size(size: Any) -> tuple[int, int] | None:
    """Return (height, width), positive integers, or None."""
    if not isinstance(size, list) or len(size) != 2:
        return None
    for side in size:
        if not _is_coordinate(side) or side != int(side):
            return None
        if not 0 < side < 1 << 20:
            return None
    return int(size[0]), int(size[1])
