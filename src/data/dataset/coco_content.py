"""The valid content of a COCO annotation file: records of images and categories, and annotations as columns.

These types are separate from the code that reads them, because most modules only use them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import NamedTuple

import msgspec
import numpy as np


class ImageRecord(msgspec.Struct, gc=False):
    """An entry of `images`; sizes in pixels."""

    id: int
    file_name: str
    width: int
    height: int


class AnnotationRecord(msgspec.Struct, gc=False):
    """An entry of `annotations`; `bbox` is x, y, width, height in pixels.

    `ignore` is common, but not part of COCO.
    """

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | None = 0
    ignore: bool | int | None = 0


class CategoryRecord(msgspec.Struct, gc=False):
    """An entry of `categories`."""

    id: int
    name: str


@dataclass
class Annotations:
    """Annotations as columns of M values, which take an eighth of the memory of records."""

    id: np.ndarray
    image_id: np.ndarray
    category_id: np.ndarray
    iscrowd: np.ndarray
    ignore: np.ndarray
    """`[M]` int64, as the four columns above."""
    bbox: np.ndarray
    """`[M, 4]` float64, as in `AnnotationRecord`."""
    area: np.ndarray
    """`[M]` float64, NaN where it is missing."""

    def __len__(self) -> int:
        return len(self.id)

    @classmethod
    def of(cls, records: Sequence[AnnotationRecord]) -> Annotations:
        """Return records as columns.

        Raises:
            OverflowError: if a number is too large.
        """
        coordinates = chain.from_iterable(r.bbox for r in records)
        boxes = np.fromiter(coordinates, np.float64, 4 * len(records))
        areas = [math.nan if r.area is None else r.area for r in records]
        return cls(
            id=_integers(records, "id"),
            image_id=_integers(records, "image_id"),
            category_id=_integers(records, "category_id"),
            iscrowd=_integers(records, "iscrowd"),
            ignore=_integers(records, "ignore"),
            bbox=boxes.reshape(-1, 4),
            area=np.array(areas, np.float64),
        )

    @classmethod
    def room_for(cls, count: int) -> Annotations:
        """Return uninitialized columns, to be filled with `put`."""
        return cls(
            id=np.empty(count, np.int64),
            image_id=np.empty(count, np.int64),
            category_id=np.empty(count, np.int64),
            iscrowd=np.empty(count, np.int64),
            ignore=np.empty(count, np.int64),
            bbox=np.empty((count, 4)),
            area=np.empty(count),
        )

    def put(self, start: int, block: Annotations) -> None:
        """Write a block of rows at position `start`."""
        end = start + len(block)
        for column in fields(self):
            getattr(self, column.name)[start:end] = getattr(block, column.name)

    def first(self, count: int) -> Annotations:
        """Return the first rows."""
        columns = {}
        for column in fields(self):
            columns[column.name] = getattr(self, column.name)[:count]
        return Annotations(**columns)


def _integers(records: Sequence[AnnotationRecord], key: str) -> np.ndarray:
    return np.array([getattr(r, key) or 0 for r in records], np.int64)


class Outlines(NamedTuple):
    """Boxes around the polygons and masks of n annotations."""

    places: np.ndarray
    """`[n]` int64, positions in the list `annotations`, ascending."""
    boxes: np.ndarray
    """`[n, 4]` float64, x, y, width, height in pixels."""
    all_compared: bool
    """Whether they include all annotations that have a polygon or mask."""


@dataclass
class CocoContent:
    """The valid records of a file, and the position of each in its list."""

    images: list[ImageRecord]
    annotations: Annotations
    categories: list[CategoryRecord]
    places: dict[str, np.ndarray]
    """For each list, the positions of its valid records in the file."""
    lost: dict[str, set[int]]
    """For each list, the ids of its faulty records, also if written as text ("7").

    References to them are not faults.
    """
    num_annotations: int = 0
    """Number of records in the list `annotations`, including faulty ones."""
    outlines: Outlines | None = None
    """Boxes around polygons and masks, of the annotations that are compared."""
    mask_sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(width, height) of the masks that boxes were computed from, by position in the list `annotations`."""
