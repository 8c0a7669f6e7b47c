"""Boxes of a whole file in another format, or of images that were resized after they were labelled.

Such boxes are converted before single records are repaired, which would clip or drop them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from ..dataset.annotation_text import parse_record
from ..dataset.box_formats import LIKELY_FRACTION, BoxFormat, fitting, to_coco
from ..dataset.coco_format import Examination
from ..dataset.findings import Kind
from ..dataset.record_faults import is_box_missing, is_id, meant_id
from .labelled_images import DECIMALS
from .records_in_repair import (
    Record,
    RecordsInRepair,
    is_four_numbers,
    sizes_by_id,
)

SAME_FACTOR = 0.02
"""Maximum relative difference of the factors of width and height in a resized image, due to rounding."""

RIGHT_SIZE_FRACTION = 0.9
"""Fraction of boxes that fit the files if the sizes in the labels were written wrong."""


def convert_boxes(records: RecordsInRepair, given: BoxFormat) -> None:
    """Convert all boxes to x, y, width, height in pixels, except boxes that are not four numbers."""
    sizes = _sizes_of_images(records)
    for index, raw in enumerate(records.content["annotations"]):
        record = parse_record(raw)
        box = record.get("bbox") if isinstance(record, dict) else None
        if not is_four_numbers(box):
            continue
        size = sizes.get(meant_id(record.get("image_id")))
        if size is None:
            if given.unit != "pixels":
                continue  # the image is not listed; the box is dropped later
            size = (1, 1)  # not used by formats in pixels
        boxes = np.array([box], float)
        converted = to_coco(boxes, np.array([size], float), given)[0].tolist()
        record["bbox"] = [round(value, DECIMALS) for value in converted]
        record.pop("area", None)  # it belonged to the wrong box
        records.store("annotations", index, record)
        records.changes[f"boxes converted from {given}"] += 1


def _sizes_of_images(
    records: RecordsInRepair,
) -> dict[int | None, tuple[int, int]]:
    """Return (width, height) by image id, for the records that have all three."""
    sizes = {}
    for record in records.objects_of("images"):
        width = record.get("width")
        height = record.get("height")
        if is_id(width) and is_id(height):
            sizes[meant_id(record.get("id"))] = (width, height)
    return sizes


def rescale_boxes(records: RecordsInRepair, examined: Examination) -> bool:
    """Scale the boxes of images that were resized after they were labelled; return whether there are any.

    If the sizes of files and labels differ, either the labels have wrong sizes, or the files were
    resized. In the second case the boxes fit the labelled sizes, and they do not fit the files, or width
    and height differ by the same factor.
    """
    resized = []
    for note in examined.findings.notes:
        if note.kind == Kind.TRUE_SIZE:
            resized += note.index.tolist()
    if not resized:
        return False
    true_sizes = sizes_by_id(examined)
    written: dict[int, tuple[int, int]] = {}
    for index in resized:
        record = records.record_at("images", index)
        written[record["id"]] = (record["width"], record["height"])
    boxes = examined.content.annotations
    rows = np.flatnonzero(np.isin(boxes.image_id, list(written)))
    if not len(rows):
        return False
    ids = boxes.image_id[rows].tolist()
    old = np.array([written[image_id] for image_id in ids], float)
    new = np.array([true_sizes[image_id] for image_id in ids], float)
    if not _were_resized(boxes.bbox[rows], old, new):
        return False
    places = examined.content.places["annotations"][rows]
    _scale_boxes(records, places.tolist(), (new / old).tolist())
    for index in resized:
        record = records.record_at("images", index)
        record["width"], record["height"] = true_sizes[record["id"]]
        records.store("images", index, record)
        records.changes["sizes of images taken from their files"] += 1
    return True


def _scale_boxes(
    records: RecordsInRepair,
    places: Sequence[int],
    factors: Sequence[Sequence[float]],
) -> None:
    """Scale annotations.

    Args:
        places: positions of the annotations in the file.
        factors: factors along x and y for each of them.
    """
    change = "boxes scaled to the size of their image file, which was resized"
    for place, (x, y) in zip(places, factors):
        record = records.record_at("annotations", place)
        _scale(record, x, y)
        records.store("annotations", place, record)
        records.changes[change] += 1


def _scale(
    record: Record,
    x: float,
    y: float,
) -> None:
    """Scale the box of an annotation, its area and its polygons, in place."""
    if not is_box_missing(record):
        left, top, width, height = record["bbox"]
        scaled = [left * x, top * y, width * x, height * y]
        record["bbox"] = [round(value, DECIMALS) for value in scaled]
    if isinstance(record.get("area"), int | float):
        record["area"] = record["area"] * x * y
    rings = record.get("segmentation")
    if not isinstance(rings, list):
        return
    if all(isinstance(ring, list) for ring in rings):
        record["segmentation"] = [_scaled_ring(ring, x, y) for ring in rings]


def _scaled_ring(
    ring: list[float],
    x: float,
    y: float,
) -> list[float]:
    """Return a polygon x1, y1, x2, y2, ... scaled by a factor for each axis."""
    factors = cycle((x, y))
    return [value * factor for value, factor in zip(ring, factors)]


def _were_resized(
    boxes: np.ndarray,
    old: np.ndarray,
    new: np.ndarray,
) -> bool:
    """Return whether images were resized after their boxes were made.

    Args:
        boxes: `[M, 4]`, x, y, width, height in pixels.
        old: `[M, 2]`, (width, height) of each box's image in the labels.
        new: `[M, 2]`, the same of the image file.
    """
    if fitting(boxes, old) < LIKELY_FRACTION:
        return False
    factors = new / old
    ratios = factors[:, 0] / factors[:, 1]
    same_factor = (np.abs(ratios - 1) < SAME_FACTOR).mean()
    if same_factor >= LIKELY_FRACTION:
        return True
    return fitting(boxes, new) < RIGHT_SIZE_FRACTION
