"""Boxes around polygons and masks of COCO annotations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Box = list[float]
"""x, y, width, height in pixels."""


def box_of_segmentation(segmentation: Any) -> Box | None:
    """Return the box around a polygon, several polygons or a mask; None if there is none or it has no area.

    Args:
        segmentation: as in COCO, lists `[x1, y1, x2, y2, ...]`, or a run-length encoded mask
            `{"size": [height, width], "counts": ...}` whose counts are numbers or compressed text. Also accepted are one
            such list by itself, a list of points `[x, y]`, and a list of masks. Rings of less than three points are skipped.
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
    """Return lists of numbers x1, y1, x2, y2, ... of any accepted form of polygons."""
    if not isinstance(polygons[0], list):
        return [polygons]
    if len(polygons) > 2 and all(isinstance(point, list) and len(point) == 2 for point in polygons):
        return [[value for point in polygons for value in point]]
    return polygons


def _around_rings(rings: list[Any]) -> Box | None:
    boxes = []
    for ring in rings:
        if not isinstance(ring, list) or len(ring) % 2 or not all(_is_coordinate(value) for value in ring):
            return None
        if len(ring) >= 6:
            xs, ys = ring[0::2], ring[1::2]
            boxes.append([min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)])
    return _around_boxes(boxes)


def _around_boxes(boxes: list[Box]) -> Box | None:
    if not boxes:
        return None
    x1, y1 = (min(box[axis] for box in boxes) for axis in (0, 1))
    x2, y2 = (max(box[axis] + box[axis + 2] for box in boxes) for axis in (0, 1))
    return [float(x1), float(y1), float(x2 - x1), float(y2 - y1)] if x2 > x1 and y2 > y1 else None


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _around_mask(mask: dict[str, Any]) -> Box | None:
    """Return the box of a run-length encoded mask; its runs go down the columns and begin with background."""
    size = _size(mask.get("size"))
    counts = mask.get("counts")
    runs = _decompressed(counts) if isinstance(counts, str) else counts
    if size is None or not isinstance(runs, list) or not all(_is_run(run) for run in runs):
        return None
    height, width = size
    ends = np.cumsum(np.array(runs, np.int64))
    if not len(ends) or ends[-1] != height * width:
        return None
    first, last = (ends - runs)[1::2], ends[1::2] - 1
    first, last = first[last >= first], last[last >= first]
    if not len(first):
        return None
    x1, x2 = first.min() // height, last.max() // height + 1
    one_column = first // height == last // height
    y1, y2 = ((first % height).min(), (last % height).max() + 1) if one_column.all() else (0, height)
    return [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]


def _is_run(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40


def _decompressed(text: str) -> list[int] | None:
    """Return the runs of COCO's compressed form: five bits a character, least first, each from the third on as a difference.

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
    """Return (height, width), whole numbers from 1, or None."""
    if not isinstance(size, list) or len(size) != 2 or not all(_is_coordinate(side) for side in size):
        return None
    if not all(side == int(side) and 0 < side < 1 << 20 for side in size):
        return None
    return int(size[0]), int(size[1])
