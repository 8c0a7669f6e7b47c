"""COCO's matching of detections with objects, for blocks of images at once.

An image and a category form a pair, and all pairs are independent of each other. COCO goes through the
detections of a pair from the highest score to the lowest. Each takes the free object that it overlaps most,
separately for each IoU threshold and each range of areas. Here these rules are applied to all pairs of a
block together, and a bit of an integer stands for a threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...detection.matching import CROWD, MISSED
from .collected_detections import DetectionArrays

LARGEST_AREA = 1e10
"""Maximum area in square pixels; COCO does not score larger objects."""

AREAS = {
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, LARGEST_AREA),
}
"""COCO's size classes: minimum and maximum area in square pixels, both inclusive."""

AREA_RANGES = np.array([(0.0, LARGEST_AREA), *AREAS.values()])
"""`[4, 2]`: the ranges of COCO's metrics: all areas first, then the size classes."""

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""`[10]`: the thresholds of COCO's metrics."""

ALL_THRESHOLDS = (1 << len(IOU_THRESHOLDS)) - 1
"""Bits of all thresholds."""

HIT = 0
"""Value of `found` for a detection that has an object of its own."""

CANDIDATES_OF_BLOCK = 1 << 19
"""Number of overlaps that are computed together; it limits the memory."""

MATCHED = np.dtype(
    [
        ("image", np.int32),
        ("category", np.int64),
        ("score", np.float64),
        ("rank", np.uint16),
        ("found", np.int8),
        ("hits", np.uint16, len(AREA_RANGES)),
        ("ignored", np.uint16, len(AREA_RANGES)),
    ]
)
"""A matched detection.

- image: number of the image, in ascending order of the image ids.
- rank: number of detections of its pair with a higher score, at most 65,535.
- found: with IoU 0.5 and any area, `HIT`, `MISSED` or `CROWD`.
- hits: for each range of areas, the thresholds at which it has an object that counts.
- ignored: the thresholds at which it counts neither as right nor as wrong.
"""


class ObjectTable(NamedTuple):
    """T objects, sorted by image and category; those of a pair in the order of the file."""

    images: np.ndarray
    """`[T]` int64: number of the image, in ascending order of the image ids."""
    categories: np.ndarray
    """`[T]` int64: category ids."""
    boxes: np.ndarray
    """`[T, 4]`: x, y, width, height in pixels."""
    areas: np.ndarray
    """`[T]` in square pixels, as in the file."""
    is_crowd: np.ndarray
    """`[T]` bool."""

    @property
    def is_ignored(self) -> np.ndarray:
        """Objects that do not count for each range of areas, `[4, T]` bool: crowds, and other areas."""
        low, high = AREA_RANGES.T[:, :, None]
        return self.is_crowd | (self.areas < low) | (self.areas > high)


def object_table(
    coco_gt: Mapping[str, Any], number_of: Mapping[int, int]
) -> ObjectTable:
    """Return the objects of a COCO dictionary.

    Args:
        coco_gt: ground truth.
        number_of: number of each image by its id, ascending.
    """
    entries = coco_gt["annotations"]
    count = len(entries)
    images = [number_of[entry["image_id"]] for entry in entries]
    table = ObjectTable(
        np.array(images, np.int64),
        np.array([entry["category_id"] for entry in entries], np.int64),
        np.array([entry["bbox"] for entry in entries], float).reshape(count, 4),
        np.array([entry["area"] for entry in entries], float),
        np.array([entry.get("iscrowd", 0) for entry in entries], bool),
    )
    order = np.lexsort((table.categories, table.images))
    return ObjectTable(*(column[order] for column in table))


def match_detections(
    detections: DetectionArrays,
    objects: ObjectTable,
    number_of: Mapping[int, int],
) -> np.ndarray:
    """Match detections with the objects of their image and category.

    Args:
        detections: detections of some images.
        objects: objects of all images.
        number_of: number of each image by its id, ascending; images that it does not contain are left out.

    Returns:
        `[N]` of type `MATCHED`, sorted by image, category and score, the highest score first. Detections
        with the same score keep their order.
    """
    ids = detections.image_ids.tolist()
    known = np.array([i in number_of for i in ids], bool)
    if not known.all():
        detections = detections.of_images(known)
    numbers = [number_of[i] for i in detections.image_ids.tolist()]
    images = np.repeat(np.array(numbers, np.int64), detections.counts)
    scores = detections.scores
    order = np.lexsort((-scores, detections.categories, images))
    boxes = detections.boxes_xywh[order]

    matched = np.zeros(len(order), MATCHED)
    matched["image"] = images[order]
    matched["category"] = detections.categories[order]
    matched["score"] = scores[order]
    matched["found"] = MISSED
    starts = _starts_of_pairs(matched)
    lengths = np.diff(np.append(starts, len(matched)))
    ranks = np.arange(len(matched)) - np.repeat(starts, lengths)
    matched["rank"] = np.minimum(ranks, np.iinfo(np.uint16).max)
    areas = boxes[:, 2] * boxes[:, 3]
    for number, (low, high) in enumerate(AREA_RANGES):
        is_outside = (areas < low) | (areas > high)
        matched["ignored"][is_outside, number] = ALL_THRESHOLDS

    first, last = _rows_of_pairs(matched, objects)
    for block in _blocks(last - first, starts):
        _match_block(matched, boxes, objects, first, last, block)
    return matched


def _starts_of_pairs(matched: np.ndarray) -> np.ndarray:
    """Return the positions at which the detections of a pair begin."""
    is_new = np.ones(len(matched), bool)
    is_new[1:] = matched["image"][1:] != matched["image"][:-1]
    is_new[1:] |= matched["category"][1:] != matched["category"][:-1]
    return np.flatnonzero(is_new)


def _rows_of_pairs(
    matched: np.ndarray, objects: ObjectTable
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the objects of each detection's pair: `[N]` first ones, `[N]` ends."""
    ids = np.unique(objects.categories)
    count = len(ids)
    keys = objects.images * count + np.searchsorted(ids, objects.categories)
    column = np.searchsorted(ids, matched["category"])
    column = np.minimum(column, max(count - 1, 0))
    wanted = matched["image"].astype(np.int64) * count + column
    first = np.searchsorted(keys, wanted, "left")
    last = np.searchsorted(keys, wanted, "right")
    if count:
        has_objects = ids[column] == matched["category"]
        last = np.where(has_objects, last, first)
    return first, last


def _blocks(candidates: np.ndarray, starts: np.ndarray) -> Iterator[slice]:
    """Return the rows of each block of whole pairs; candidates: `[N]` objects of each detection's pair."""
    sums = np.concatenate([[0], np.cumsum(candidates)])
    begin = 0
    while begin < len(candidates):
        limit = sums[begin] + CANDIDATES_OF_BLOCK
        reached = np.searchsorted(sums, limit, "right")
        after = np.searchsorted(starts, min(reached, len(candidates)), "left")
        end = int(starts[after]) if after < len(starts) else len(candidates)
        yield slice(begin, end)
        begin = end


class _Candidates(NamedTuple):
    """E overlaps with an IoU of at least the lowest threshold."""

    detections: np.ndarray
    """`[E]`: rows of the detections."""
    objects: np.ndarray
    """`[E]`: rows of the objects."""
    ious: np.ndarray
    """`[E]`."""


def _match_block(
    matched: np.ndarray,
    boxes: np.ndarray,
    objects: ObjectTable,
    first: np.ndarray,
    last: np.ndarray,
    block: slice,
) -> None:
    """Write the matches of some rows of `matched`."""
    counts = last[block] - first[block]
    rows = np.repeat(np.arange(block.start, block.stop), counts)
    offsets = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
    found = first[rows] + offsets
    ious = _overlaps(boxes[rows], objects.boxes[found], objects.is_crowd[found])
    enough = ious >= IOU_THRESHOLDS[0]
    candidates = _Candidates(rows[enough], found[enough], ious[enough])
    if not len(candidates.ious):
        return
    highest = np.searchsorted(IOU_THRESHOLDS, candidates.ious, "right")
    bits = (1 << highest) - 1
    for number, ignored in enumerate(objects.is_ignored):
        is_ignored = ignored[candidates.objects]
        # of equal overlaps, COCO takes the last object
        order = np.lexsort(
            (
                -candidates.objects,
                -candidates.ious,
                is_ignored,
                candidates.detections,
            )
        )
        given = _give(candidates, bits, objects.is_crowd, order)
        hits, neither = _bits_of_rows(candidates, given, is_ignored, block)
        matched["hits"][block, number] = hits
        own = matched["ignored"][block, number]
        matched["ignored"][block, number] = (own & ~hits) | neither

    is_crowd = objects.is_crowd[candidates.objects]
    # of equal overlaps, `match_image` takes the first object
    order = np.lexsort(
        (
            candidates.objects,
            -candidates.ious,
            is_crowd,
            candidates.detections,
        )
    )
    lowest = np.ones_like(bits)
    given = _give(candidates, lowest, objects.is_crowd, order)
    hits, in_crowd = _bits_of_rows(candidates, given, is_crowd, block)
    matched["found"][block] = np.where(
        hits > 0, HIT, np.where(in_crowd > 0, CROWD, MISSED)
    )


def _overlaps(
    boxes: np.ndarray, others: np.ndarray, is_crowd: np.ndarray
) -> np.ndarray:
    """Return the IoU of each box with one other, `[E]`; of a crowd, the fraction of the box within it."""
    starts = np.maximum(boxes[:, :2], others[:, :2])
    ends = np.minimum(
        boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:]
    )
    sides = ends - starts
    overlapping = (sides > 0).all(1)
    common = sides[:, 0] * sides[:, 1]
    own = boxes[:, 2] * boxes[:, 3]
    union = own + others[:, 2] * others[:, 3] - common
    whole = np.where(is_crowd, own, union)
    ious = np.zeros(len(boxes))
    np.divide(common, whole, out=ious, where=overlapping & (whole > 0))
    return ious


def _give(
    candidates: _Candidates,
    bits: np.ndarray,
    is_crowd: np.ndarray,
    order: np.ndarray,
) -> np.ndarray:
    """Return for each candidate the thresholds at which the detection takes the object, `[E]` bits.

    A candidate depends only on earlier ones of its detection or of its object. So each round decides all
    that are the first of both, and most blocks need few rounds.

    Args:
        candidates: candidates.
        bits: `[E]` thresholds that each candidate's IoU reaches.
        is_crowd: `[T]`; any number of detections can take a crowd.
        order: `[E]` candidates in the order in which COCO regards them.
    """
    rows, detections = np.unique(
        candidates.detections[order], return_inverse=True
    )
    _, objects = np.unique(candidates.objects[order], return_inverse=True)
    in_crowd = is_crowd[candidates.objects[order]]
    # a crowd is never taken: as if there was one for each candidate
    objects = np.where(in_crowd, len(order) + np.arange(len(order)), objects)
    done = np.zeros(len(rows), bits.dtype)
    taken = np.zeros(2 * len(order), bits.dtype)
    first_of_detection = np.zeros(len(rows), np.int64)
    first_of_object = np.zeros(2 * len(order), np.int64)
    given = np.zeros_like(bits)
    left = order
    wanted = bits[order]
    while len(left):
        positions = np.arange(len(left))
        # of repeated indices, the last assignment stays: that of the first candidate
        first_of_detection[detections[::-1]] = positions[::-1]
        first_of_object[objects[::-1]] = positions[::-1]
        is_first = first_of_detection[detections] == positions
        is_first &= first_of_object[objects] == positions
        now = wanted[is_first]
        given[left[is_first]] = now
        done[detections[is_first]] |= now
        taken[objects[is_first]] |= now
        wanted = wanted & ~done[detections] & ~taken[objects]
        is_open = ~is_first & (wanted > 0)
        left = left[is_open]
        wanted = wanted[is_open]
        detections = detections[is_open]
        objects = objects[is_open]
    return given


def _bits_of_rows(
    candidates: _Candidates,
    given: np.ndarray,
    is_ignored: np.ndarray,
    block: slice,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the thresholds with an object that counts, and those with another one, `[rows of the block]`."""
    rows = candidates.detections - block.start
    counting = np.zeros(block.stop - block.start, np.uint16)
    others = np.zeros_like(counting)
    given = given.astype(np.uint16)
    np.bitwise_or.at(counting, rows[~is_ignored], given[~is_ignored])
    np.bitwise_or.at(others, rows[is_ignored], given[is_ignored])
    return counting, others
