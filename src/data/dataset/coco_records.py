"""The records of a COCO annotation file, and their faults.

A valid file is decoded directly into small typed records, without polygons and other data that detection does
not use. A file that cannot be decoded in this way is read record by record, so that each fault can be named;
only the faulty records are then parsed in full.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import msgspec
import numpy as np

from ...core.errors import DataError
from ...core.paths import (
    decode_text,
    did_you_mean_file,
    files_inside,
    open_regular,
)
from ...runtime.limits import is_system_limit
from .findings import COMPARED, Findings, Kind
from .segmentation import box_of_segmentation, mask_size

LARGEST_ID = (1 << 63) - 1
"""Ids are kept as int64."""

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f]")

_PIECE_BYTES = 1 << 20
"""Length of the pieces in which a text is checked for valid UTF-8."""

BLOCK = 10_000
"""Number of annotations that are decoded at a time."""

ID_EXPECTED = "expected a non-negative integer"
"""Part of the messages about ids."""


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


LISTS = ("images", "annotations", "categories")
"""The lists that every COCO file has."""


class _File(msgspec.Struct):
    images: list[ImageRecord]
    annotations: list[msgspec.Raw]
    categories: list[CategoryRecord]


class _Segmented(msgspec.Struct):
    segmentation: Any = None


class _ImageList(msgspec.Struct):
    images: list[msgspec.Raw]


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


def read_records(path: Path, findings: Findings) -> CocoContent:
    """Read a file; records that are faulty in themselves are skipped and added to `findings`.

    Raises:
        DataError: if the file cannot be read as COCO at all.
    """
    raw = read_annotation_file(path)
    try:
        _refuse_other_than_utf8(raw)
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
        _refuse_other_than_utf8(raw)
        records = msgspec.json.decode(raw, type=_ImageList).images
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        records = _parse_plainly(raw, path, ("images",))["images"]
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


def unsafe_file_name(name: Any) -> str | None:
    """Return the reason why a file name must not be opened, or None if it stays inside the image folder."""
    if not isinstance(name, str) or not name:
        return "expected a file name"
    if _CONTROL_CHARACTER.search(name):
        return "which contains a control character"
    if "://" in name:
        return "which is an address; images must lie in the image folder"
    if name[0] in "/\\" or name[1:3] in (":\\", ":/"):
        return (
            "which is an absolute path; names are relative to the image folder"
        )
    if ".." in name and ".." in name.replace("\\", "/").split("/"):
        return "which leaves the image folder"
    if len(name) > 1024 and len(name.encode(errors="replace")) > 4096:
        return "which is longer than a path can be"
    return None


def read_annotation_file(path: Path) -> bytes:
    """Return the bytes of a file as UTF-8 without a byte order mark.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            raw = file.read()
    except OSError as error:
        if is_system_limit(error):
            raise
        missing = isinstance(error, FileNotFoundError)
        hint = (
            did_you_mean_file(path) if missing else files_inside(path, "*.json")
        )
        reason = error.strerror or error
        raise DataError(
            f"annotation file {path} cannot be read: {reason}{hint}"
        ) from None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # some editors on Windows write UTF-16
        text = decode_text(raw, errors="surrogatepass")
        return text.encode("utf-8", "surrogatepass")
    return raw.removeprefix(codecs.BOM_UTF8)


def split_records(raw: bytes, path: Path) -> dict[str, Any]:
    """Split a file into its keys, and the three lists of COCO into records that are not parsed yet.

    Returns:
        For each key a `msgspec.Raw`, for the lists a list of them. A file that only a tolerant parser accepts
        (for example with NaN) is returned as plain values.

    Raises:
        DataError: if the file is not JSON, or if a list is missing.
    """
    try:
        _refuse_other_than_utf8(raw)
        content: dict[str, Any] = _decode_keys(raw)
        for key in LISTS:
            content[key] = _decode_list(content[key])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        return _parse_plainly(raw, path)
    return content


_decode_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def parse_record(record: Any) -> Any:
    """Return a record of `split_records` as plain values."""
    if isinstance(record, msgspec.Raw):
        return json.loads(bytes(record))
    return record


def _refuse_other_than_utf8(raw: bytes) -> None:
    """Raise `UnicodeDecodeError` for text that is not UTF-8.

    The parser does not notice this in values that it skips. The text is decoded in pieces to save memory.
    """
    if raw.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(raw)
    for start in range(0, len(raw), _PIECE_BYTES):
        decoder.decode(view[start : start + _PIECE_BYTES])
    decoder.decode(b"", final=True)


def _parse_plainly(
    raw: bytes,
    path: Path,
    lists: Sequence[str] = LISTS,
) -> dict[str, Any]:
    try:
        content = json.loads(raw)
    except json.JSONDecodeError as error:
        what = f"{error.msg}, line {error.lineno} column {error.colno}"
        if not raw.strip():
            what = "the file is empty"
        raise DataError(f"{path} is not valid JSON: {what}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON: not UTF-8 at byte {error.start}"
        ) from None
    except RecursionError:
        raise DataError(
            f"{path} is not valid JSON: nested too deeply"
        ) from None
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise DataError(
            f"{path} contains a {kind}, expected an object with {_lists_in_words(lists)}"
        )
    for key in lists:
        if key not in content:
            found = "is missing"
        elif not isinstance(content[key], list):
            found = f"is a {type(content[key]).__name__}"
        else:
            continue
        raise DataError(
            f'{path}: "{key}" {found}, expected a list; COCO files have images, annotations and categories'
        )
    return content


def _lists_in_words(lists: Sequence[str]) -> str:
    *first, last = lists
    if not first:
        return f"a list {last}"
    return f"lists {', '.join(first)} and {last}"


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
        _annotation_faults,
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


def _image_faults(record: dict[str, Any]) -> Iterator[tuple[Kind, str]]:
    if not is_id(record.get("id")):
        yield Kind.BAD_ID, f"{_shown(record, 'id')}, {ID_EXPECTED}"
    reason = unsafe_file_name(record.get("file_name"))
    if reason:
        yield Kind.BAD_FILE_NAME, f"{_shown(record, 'file_name')}, {reason}"
    for key in ("width", "height"):
        if not is_id(record.get(key)):
            expected = "expected a positive integer (pixels)"
            yield Kind.BAD_SIZE, f"{_shown(record, key)}, {expected}"


def _annotation_faults(record: dict[str, Any]) -> Iterator[tuple[Kind, str]]:
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


_NO_BOX = (math.nan,) * 4


def _category_faults(record: dict[str, Any]) -> Iterator[tuple[Kind, str]]:
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


def _read_images(
    records: list[Any], findings: Findings
) -> tuple[list[Any], np.ndarray, set[int]]:
    return _sound(records, "images", _image_faults, ImageRecord, findings)


def _read_categories(
    records: list[Any], findings: Findings
) -> tuple[list[Any], np.ndarray, set[int]]:
    return _sound(
        records, "categories", _category_faults, CategoryRecord, findings
    )


_Reader = Callable[[list[Any], Findings], tuple[Any, np.ndarray, set[int]]]

_READ: dict[str, _Reader] = {
    "images": _read_images,
    "annotations": _read_annotations,
    "categories": _read_categories,
}
"""Functions that read the records of each list of a file."""
