"""Boxes around polygons and masks of COCO annotations."""

from __future__ import annotations

import math
from typing import Any


def box_of_segmentation(segmentation: Any) -> list[float] | None:
    """Return the box x, y, width, height in pixels around a polygon, several polygons or a mask; None if it has no area.

    Args:
        segmentation: as in COCO: lists `[x1, y1, x2, y2, ...]` or one such list, or a run-length encoded mask
            `{"size": [height, width], "counts": ...}`, whose counts are numbers or a compressed text.
    """
    box = _around_mask(segmentation) if isinstance(segmentation, dict) else _around_polygons(segmentation)
    return box if box is not None and box[2] > 0 and box[3] > 0 else None


def _around_polygons(polygons: Any) -> list[float] | None:
    if not isinstance(polygons, list) or not polygons:
        return None
    if not isinstance(polygons[0], list):
        polygons = [polygons]
    xs: list[float] = []
    ys: list[float] = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return None
        if not all(_is_coordinate(value) for value in polygon):
            return None
        xs += map(float, polygon[0::2])
        ys += map(float, polygon[1::2])
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _around_mask(mask: dict[str, Any]) -> list[float] | None:
    from pycocotools import mask as masks

    size, counts = mask.get("size"), mask.get("counts")
    if not _is_size(size) or not isinstance(counts, str | list):
        return None
    try:
        if isinstance(counts, list):
            if sum(counts) != size[0] * size[1] or min(counts) < 0:
                return None
            encoded = masks.frPyObjects({"size": size, "counts": counts}, *size)
        else:
            encoded = {"size": size, "counts": counts.encode()}
        return [float(value) for value in masks.toBbox(encoded)]
    except (TypeError, ValueError, OverflowError):
        return None


def _is_size(size: Any) -> bool:
    return (
        isinstance(size, list)
        and len(size) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) and 0 < side < 1 << 20 for side in size)
    )
