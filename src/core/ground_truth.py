"""The ground-truth objects of one image, and what follows from them alone.

They are the only type that the author of a data set must construct.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor


class Objects(NamedTuple):
    """The ground-truth objects of one image."""

    boxes: Tensor
    """`[T, 4]` float, xyxy in pixels of the image file."""
    labels: Tensor
    """`[T]` int64, positions in `DetectionData.class_names`."""
    ignored: Tensor | None = None
    """`[T]` bool: objects excluded from training and scoring, such as crowd regions; None for no objects."""
    areas: Tensor | None = None
    """`[T]` float, square pixels, for the size classes small, medium and large; None uses the box areas."""


def coco_rows(objects: Objects) -> Iterator[dict[str, Any]]:
    """Yield a COCO annotation for each object, without `id` and `image_id`.

    `category_id` is the position of the class in `class_names`.
    """
    boxes = objects.boxes.reshape(-1, 4).tolist()
    labels = objects.labels.tolist()
    areas = [None] * len(boxes)
    if objects.areas is not None:
        areas = objects.areas.tolist()
    ignored = [False] * len(boxes)
    if objects.ignored is not None:
        ignored = objects.ignored.tolist()
    for box, label, area, is_ignored in zip(boxes, labels, areas, ignored):
        x0, y0, x1, y1 = box
        width = x1 - x0
        height = y1 - y0
        yield {
            "category_id": label,
            "bbox": [x0, y0, width, height],
            "area": width * height if area is None else area,
            "iscrowd": int(is_ignored),
        }


def count_usable(objects: Objects) -> int:
    """Return the number of objects that are not ignored."""
    count = len(objects.boxes)
    if objects.ignored is not None:
        count -= int(objects.ignored.sum())
    return count


def bytes_of(objects: Objects) -> bytes:
    """Return objects as bytes; equal objects give equal bytes."""
    values = [
        None if part is None else part.double().tolist() for part in objects
    ]
    return repr(values).encode()
