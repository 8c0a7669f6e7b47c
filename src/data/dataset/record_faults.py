"""Faults of single records of annotation files, in words.

A record is judged by itself here; references between records and boxes are checked in `box_checks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeGuard

from .findings import Kind
from .image_names import unsafe_file_name
from .segmentation import box_of_segmentation

LARGEST_ID = (1 << 63) - 1
"""Ids are kept as int64."""

ID_EXPECTED = "expected a non-negative integer"
"""Part of the messages about ids."""


def image_faults(record: dict[str, Any]) -> Iterator[tuple[Kind, str]]:
    """Yield the kind and the description of each fault of an entry of `images`."""
    if not is_id(record.get("id")):
        yield Kind.BAD_ID, f"{_shown(record, 'id')}, {ID_EXPECTED}"
    reason = unsafe_file_name(record.get("file_name"))
    if reason:
        yield Kind.BAD_FILE_NAME, f"{_shown(record, 'file_name')}, {reason}"
    for key in ("width", "height"):
        if not is_id(record.get(key)):
            expected = "expected a positive integer (pixels)"
            yield Kind.BAD_SIZE, f"{_shown(record, key)}, {expected}"


def annotation_faults(record: dict[str, Any]) -> Iterator[tuple[Kind, str]]:
    """Yield the kind and the description of each fault of an entry of `annotations`."""
    for key in ("id", "image_id", "category_id"):
        if not is_id(record.get(key)):
            yield Kind.BAD_ID, f"{_shown(record, key)}, {ID_EXPECTED}"
    if not _has_box(record):
        expected = "expected four numbers [x, y, width, height]"
        yield Kind.BAD_BOX, f"{_shown(record, 'bbox')}, {expected}"
    area = record.get("area")
    if area is not None and not _is_number(area):
        yield (
            Kind.BAD_AREA,
            f"{_shown(record, 'area')}, expected a non-negative number",
        )
    crowd = record.get("iscrowd", 0)
    if crowd is not None and not is_id(crowd):
        yield Kind.BAD_CROWD, f"{_shown(record, 'iscrowd')}, expected 0 or 1"
    if record.get("ignore", 0) not in (
        None,
        False,
        True,
    ):  # 0 and 1 are equal to these
        yield Kind.BAD_IGNORE, f"{_shown(record, 'ignore')}, expected 0 or 1"


def _has_box(record: dict[str, Any]) -> bool:
    """Return whether an annotation has four numbers as its box, or a segmentation to compute it from."""
    if is_box_missing(record):
        return box_of_segmentation(record.get("segmentation")) is not None
    box = record["bbox"]
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(map(_is_number, box))


def is_box_missing(record: dict[str, Any]) -> bool:
    """Return whether an annotation has no box: no `bbox`, null or an empty list."""
    return record.get("bbox") in (None, [])


def category_faults(record: dict[str, Any]) -> Iterator[tuple[Kind, str]]:
    """Yield the kind and the description of each fault of an entry of `categories`."""
    if not is_id(record.get("id")):
        yield Kind.BAD_ID, f"{_shown(record, 'id')}, {ID_EXPECTED}"
    if not isinstance(record.get("name"), str):
        yield Kind.BAD_NAME, f"{_shown(record, 'name')}, expected a name"


def meant_id(value: Any) -> int | None:
    """Return the id that a value represents (7, "7", 7.0), or None."""
    if isinstance(value, str):
        digits = value.strip()
        if digits.isascii() and digits.isdigit() and len(value) < 20:
            value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if is_id(value) else None


def is_id(value: Any) -> TypeGuard[int]:
    """Return whether a value can be an id: a non-negative integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return 0 <= value <= LARGEST_ID


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _shown(record: dict[str, Any], key: str) -> str:
    """Describe a wrong value within a bounded length."""
    if key not in record:
        return f'no "{key}"'
    text = repr(record[key])
    if len(text) > 80:
        text = f"{text[:80]}..."
    return f"{key} is {text}"
