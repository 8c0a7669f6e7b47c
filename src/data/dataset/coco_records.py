"""Decode the records of a COCO annotation file.

A valid file is decoded directly into small typed records, without polygons and other data that detection does
not use. A file that cannot be decoded in this way is read record by record, so that each fault can be named;
only the faulty records are then parsed in full.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .annotation_text import (
    parse_plainly,
    parse_record,
    read_annotation_file,
    refuse_other_than_utf8,
    split_records,
)
from .coco_content import (
    AnnotationRecord,
    Annotations,
    CategoryRecord,
    CocoContent,
    ImageRecord,
    Outlines,
)
from .findings import COMPARED, Findings, Kind
from .record_faults import (
    LARGEST_ID,
    annotation_faults,
    category_faults,
    image_faults,
    is_box_missing,
    is_id,
    meant_id,
)
from .segmentation import box_of_segmentation, mask_size

BLOCK = 10_000
"""Number of annotations that are decoded at a time."""


class _File(msgspec.Struct):
    images: list[ImageRecord]
    annotations: list[msgspec.Raw]
    categories: list[CategoryRecord]


class _Segmented(msgspec.Struct):
    segmentation: Any = None


class _ImageList(msgspec.Struct):
    images: list[msgspec.Raw]


def read_records(path: Path, findings: Findings) -> CocoContent:
    """Read a file; records that are faulty in themselves are skipped and added to `findings`.

    Raises:
        DataError: if the file cannot be read as COCO at all.
    """
    raw = read_annotation_file(path)
    try:
        refuse_other_than_utf8(raw)
        file = msgspec.json.decode(raw, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_leniently(raw, path, findings)
    annotations, annotation_places, lost = _read_annotations(
        file.annotations, findings
    )
    places = {
        "images": np.arange(len(file.images)),
        "annotations": annotation_places,
        "categories": np.arange(len(file.categories)),
    }
    return CocoContent(
        file.images,
        annotations,
        file.categories,
        places,
        lost={"images": set(), "annotations": lost, "categories": set()},
        num_annotations=len(file.annotations),
        outlines=_outlines(file.annotations, findings),
        mask_sizes=_mask_sizes(file.annotations, findings),
    )


def image_records(path: Path, findings: Findings) -> CocoContent:
    """Read only the list `images` of a file; the other lists of the result are empty.

    Raises:
        DataError: if the file cannot be read, or if it does not have this list.
    """
    raw = read_annotation_file(path)
    try:
        refuse_other_than_utf8(raw)
        records = msgspec.json.decode(raw, type=_ImageList).images
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        records = parse_plainly(raw, path, ("images",))["images"]
    sound, places, lost = _READ["images"](records, findings)
    nothing = np.zeros(0, np.int64)
    return CocoContent(
        sound,
        Annotations.room_for(0),
        [],
        places={
            "images": places,
            "annotations": nothing,
            "categories": nothing,
        },
        lost={"images": lost, "annotations": set(), "categories": set()},
    )


def _decode_leniently(
    raw: bytes,
    path: Path,
    findings: Findings,
) -> CocoContent:
    """Decode a malformed file: keep the valid records and list the faults of the others."""
    return sound_records(split_records(raw, path), findings)


def sound_records(content: dict[str, Any], findings: Findings) -> CocoContent:
    """Return the records of `split_records` that are valid; the others are added to `findings`."""
    sound = {}
    places = {}
    lost = {}
    for key, read in _READ.items():
        kept = read(content[key], findings)
        sound[key], places[key], lost[key] = kept
    count = len(content["annotations"])
    masks = _mask_sizes(content["annotations"], findings)
    return CocoContent(
        **sound,
        places=places,
        lost=lost,
        num_annotations=count,
        outlines=_outlines(content["annotations"], findings),
        mask_sizes=masks,
    )


def _outlines(records: list[Any], findings: Findings) -> Outlines:
    """Return the boxes around the polygons and masks of the annotations that are compared."""
    places = array("q")
    coordinates = array("d")
    compared = records if findings.compares_all else records[:COMPARED]
    decoder = msgspec.json.Decoder(_Segmented)
    for place, record in enumerate(compared):
        if isinstance(record, msgspec.Raw):
            try:
                segmentation = decoder.decode(record).segmentation
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
        else:
            is_object = isinstance(record, dict)
            segmentation = record.get("segmentation") if is_object else None
        box = box_of_segmentation(segmentation) if segmentation else None
        if box is not None:
            places.append(place)
            coordinates.extend(box)
    return Outlines(
        np.array(places, np.int64),
        np.array(coordinates, np.float64).reshape(-1, 4),
        len(compared) == len(records),
    )


def _mask_sizes(
    records: list[Any], findings: Findings
) -> dict[int, tuple[int, int]]:
    """Return (width, height) of each mask that a box was computed from, by position."""
    sizes = {}
    for note in findings.notes:
        if note.kind != Kind.BOX_COMPUTED:
            continue
        for place in note.index.tolist():
            size = mask_size(parse_record(records[place]).get("segmentation"))
            if size is not None:
                sizes[place] = size
    return sizes


def _read_annotations(
    records: list[Any], findings: Findings
) -> tuple[Annotations, np.ndarray, set[int]]:
    """Return the result of `_sound` as columns; one block at a time, so that few records exist at once."""
    columns = Annotations.room_for(len(records))
    count = 0
    places = [np.zeros(0, np.int64)]
    lost = set()
    decoder = msgspec.json.Decoder(list[AnnotationRecord])
    repaired: list[tuple[int, int]] = []
    for start in range(0, len(records), BLOCK):
        block = records[start : start + BLOCK]
        try:
            text = b"[" + b",".join(block) + b"]"
            sound = Annotations.of(decoder.decode(text))
            where = np.arange(start, start + len(block))
        except _UNDECODABLE:
            kept, where, faulty = _sound_annotations(block, findings, start)
            sound = Annotations.of(kept)
            lost |= faulty
        repaired += _boxes_from_segmentations(sound, where, records)
        places.append(where)
        columns.put(count, sound)
        count += len(sound)
    if repaired:
        index, ids = np.array(repaired, np.int64).T
        findings.note(Kind.BOX_COMPUTED, "annotations", index, ids)
    return columns.first(count), np.concatenate(places), lost


def _sound_annotations(
    records: list[Any],
    findings: Findings,
    start: int,
) -> tuple[list[Any], np.ndarray, set[int]]:
    return _sound(
        records,
        "annotations",
        annotation_faults,
        AnnotationRecord,
        findings,
        start,
    )


_UNDECODABLE = (
    msgspec.MsgspecError,
    UnicodeDecodeError,
    RecursionError,
    OverflowError,
    TypeError,  # plain values instead of bytes
)
"""Errors for a block that has to be read record by record."""


def _boxes_from_segmentations(
    block: Annotations,
    places: np.ndarray,
    records: list[Any],
) -> list[tuple[int, int]]:
    """Compute boxes that are missing or have no area from polygons or masks; return (place, id) of each."""
    repaired = []
    extents = block.bbox[:, 2:]
    has_area = (extents > 0).all(1)  # False for a missing box, which is NaN
    for row in np.flatnonzero(~has_area):
        place = int(places[row])
        box = box_of_segmentation(
            parse_record(records[place]).get("segmentation")
        )
        if box is not None:
            block.bbox[row] = box
            repaired.append((place, int(block.id[row])))
    return repaired


def _sound(
    records: list[Any],
    where: str,
    faults_of: Callable[[dict[str, Any]], Iterator[tuple[Kind, str]]],
    kind: type[msgspec.Struct],
    findings: Findings,
    start: int = 0,
) -> tuple[list[Any], np.ndarray, set[int]]:
    """Return the usable records, their positions, and the ids of the others, also if written as text."""
    kept: list[Any] = []
    places: list[int] = []
    lost: set[int] = set()
    decoder = msgspec.json.Decoder(kind)
    for index, raw in enumerate(records, start):
        decoded = _decoded(raw, decoder)
        if decoded is not None:
            kept.append(decoded)
            places.append(index)
            continue
        try:
            record = parse_record(raw)
        except (ValueError, RecursionError) as error:
            # not UTF-8, or a number with thousands of digits
            what = f"cannot be read: {str(error)[:80]}"
            findings.fault(Kind.NO_OBJECT, what, where, index)
            continue
        if not isinstance(record, dict):
            what = f"a {type(record).__name__}, expected an object"
            findings.fault(Kind.NO_OBJECT, what, where, index)
            continue
        faults = list(faults_of(record))
        if not faults:
            kept.append(_as_record(record, kind))
            places.append(index)
            continue
        given = record.get("id")
        usable = given if is_id(given) else None
        for fault, what in faults:
            findings.fault(fault, what, where, index, usable)
        meant = meant_id(given)
        if meant is not None:
            lost.add(meant)
    return kept, np.array(places, np.int64), lost


def _decoded(record: Any, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Return a record as its own type; None if it cannot be decoded, or if its ids are too large."""
    if not isinstance(record, msgspec.Raw):
        return None
    try:
        decoded = decoder.decode(record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    for value in msgspec.structs.astuple(decoded):
        if isinstance(value, int) and abs(value) > LARGEST_ID:
            return None
    return decoded


def _as_record(record: dict[str, Any], kind: type[msgspec.Struct]) -> Any:
    """Return plain values without faults as a record of its own type."""
    known = {}
    for name in kind.__struct_fields__:
        if name in record:
            known[name] = record[name]
    if kind is AnnotationRecord and is_box_missing(record):
        known["bbox"] = _NO_BOX
    return kind(**known)


_NO_BOX = (math.nan,) * 4


def _read_images(
    records: list[Any], findings: Findings
) -> tuple[list[Any], np.ndarray, set[int]]:
    return _sound(records, "images", image_faults, ImageRecord, findings)


def _read_categories(
    records: list[Any], findings: Findings
) -> tuple[list[Any], np.ndarray, set[int]]:
    return _sound(
        records, "categories", category_faults, CategoryRecord, findings
    )


_Reader = Callable[[list[Any], Findings], tuple[Any, np.ndarray, set[int]]]

_READ: dict[str, _Reader] = {
    "images": _read_images,
    "annotations": _read_annotations,
    "categories": _read_categories,
}
"""Functions that read the records of each list of a file."""
