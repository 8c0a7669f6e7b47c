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
    size = _size(segmentation.get("size")) if isinstance(segmentation, dict) else None
    return None if size is None else (size[1], size[0])


def _rings(polygons: list[Any]) -> list[Any]:
    """Return lists of numbers x1, y1, x2, y2, ... for any accepted form of polygons."""
    if not isinstance(polygons[0], list):
        return [polygons]
    if len(polygons) > 2 and all(
        isinstance(point, list) and len(point) == 2 for point in polygons
    ):
        return [list(chain.from_iterable(polygons))]
    return polygons


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
            boxes.append([min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)])
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
    return [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]


def _is_coordinate(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _around_mask(mask: dict[str, Any]) -> Box | None:
    """Return the box of a run-length encoded mask, whose runs go down the columns and begin with
    background.
    """
    size = _size(mask.get("size"))
    counts = mask.get("counts")
    runs = _decompressed(counts) if isinstance(counts, str) else counts
    if size is None or not isinstance(runs, list) or not all(map(_is_run, runs)):
        return None
    height, width = size
    ends = np.cumsum(np.array(runs, np.int64))
    if not len(ends) or ends[-1] != height * width:
        return None
    first = (ends - runs)[1::2]
    last = ends[1::2] - 1
    not_empty = last >= first
    if not not_empty.any():
        return None
    first = first[not_empty]
    last = last[not_empty]
    x1 = first.min() // height
    x2 = last.max() // height + 1
    y1, y2 = 0, height
    if (first // height == last // height).all():  # no run continues in the next column
        y1 = (first % height).min()
        y2 = (last % height).max() + 1
    return [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]


def _is_run(value: Any) -> bool:
    return (
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40
    )


def _decompressed(text: str) -> list[int] | None:
    """Return the runs of COCO's compressed form.

    A character holds five bits, the lowest first; the fourth and later runs are differences to the run two
    before.
    Source: `rleFrString` of the COCO API.
    """
    runs: list[int] = []
    value = shift = 0
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
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return None if shift else runs


def _size(size: Any) -> tuple[int, int] | None:
    """Return (height, width), positive integers, or None."""
    if not isinstance(size, list) or len(size) != 2:
        return None
    for side in size:
        if not _is_coordinate(side) or side != int(side) or not 0 < side < 1 << 20:
            return None
    return int(size[0]), int(size[1])
