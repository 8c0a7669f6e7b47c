"""The records of a COCO annotation file, and what is wrong with them.

A sound file is decoded straight into slim typed records (polygons and whatever else detection does not use are
skipped). Only a file that does not decode that way is gone through record by record, so that each fault can be named;
only the faulty records are then parsed in full.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ...core.errors import DataError
from ...core.paths import decode_text, did_you_mean_file, files_inside
from ...runtime.limits import is_system_limit
from .findings import Findings, Kind
from .segmentation import box_of_segmentation, mask_size

LARGEST_ID = (1 << 63) - 1
"""Ids are kept as int64."""

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f]")

BLOCK = 10_000
"""Annotations that are decoded at a time."""


class ImageRecord(msgspec.Struct, gc=False):
    """An entry of `images`; sizes in pixels."""

    id: int
    file_name: str
    width: int
    height: int


class AnnotationRecord(msgspec.Struct, gc=False):
    """An entry of `annotations`; `bbox` is x, y, width, height in pixels. `ignore` is no part of COCO, but common."""

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
"""What every COCO file has."""


class _File(msgspec.Struct):
    images: list[ImageRecord]
    annotations: list[msgspec.Raw]
    categories: list[CategoryRecord]


class _ImageList(msgspec.Struct):
    images: list[msgspec.Raw]


@dataclass
class Annotations:
    """Annotations as columns of M values, an eighth of what records take."""

    id: np.ndarray
    image_id: np.ndarray
    category_id: np.ndarray
    iscrowd: np.ndarray
    ignore: np.ndarray
    """`[M]` int64, these five."""
    bbox: np.ndarray
    """`[M, 4]` float64, as in `AnnotationRecord`."""
    area: np.ndarray
    """`[M]` float64, NaN where there is none."""

    def __len__(self) -> int:
        return len(self.id)

    @classmethod
    def of(cls, records: Sequence[AnnotationRecord]) -> Annotations:
        """Return the columns of records.

        Raises:
            OverflowError: if a number does not fit.
        """
        ids, images, categories, crowds, ignored = (
            np.array([getattr(r, key) or 0 for r in records], np.int64)
            for key in ("id", "image_id", "category_id", "iscrowd", "ignore")
        )
        return cls(
            ids,
            images,
            categories,
            crowds,
            ignored,
            np.fromiter(chain.from_iterable(r.bbox for r in records), np.float64, 4 * len(records)).reshape(
                -1, 4
            ),
            np.array([np.nan if r.area is None else r.area for r in records], np.float64),
        )

    @classmethod
    def room_for(cls, count: int) -> Annotations:
        """Return columns to be filled by `put`."""
        ids, image_ids, categories, crowds, ignored = (np.empty(count, np.int64) for _ in range(5))
        return cls(ids, image_ids, categories, crowds, ignored, np.empty((count, 4)), np.empty(count))

    def put(self, start: int, block: Annotations) -> None:
        """Fill the rows from `start` on."""
        for key in fields(self):
            getattr(self, key.name)[start : start + len(block)] = getattr(block, key.name)

    def first(self, count: int) -> Annotations:
        """Return the first rows."""
        return Annotations(*(getattr(self, key.name)[:count] for key in fields(self)))


@dataclass
class CocoContent:
    """The sound records of a file, and where each stood in it."""

    images: list[ImageRecord]
    annotations: Annotations
    categories: list[CategoryRecord]
    places: dict[str, np.ndarray]
    lost: dict[str, set[int]]
    """Ids that the faulty records of each list have, or mean to have ("7"): what refers to them is not at fault."""
    num_annotations: int = 0
    """Records of the list `annotations`, faulty ones included."""
    mask_sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(width, height) of the masks that boxes were computed from, by position in the list `annotations`."""


def read_records(path: Path, findings: Findings) -> CocoContent:
    """Read a file; records that are faulty in themselves are left out and noted in `findings`.

    Raises:
        DataError: if the file cannot be read as COCO at all.
    """
    raw = read_annotation_file(path)
    try:
        _refuse_other_than_utf8(raw)
        file = msgspec.json.decode(raw, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_leniently(raw, path, findings)
    annotations, places, lost = _read_annotations(file.annotations, findings)
    return CocoContent(
        file.images,
        annotations,
        file.categories,
        {
            "images": np.arange(len(file.images)),
            "annotations": places,
            "categories": np.arange(len(file.categories)),
        },
        {"images": set(), "annotations": lost, "categories": set()},
        len(file.annotations),
        _mask_sizes(file.annotations, findings),
    )


def image_records(path: Path, findings: Findings) -> CocoContent:
    """Read the list `images` of a file alone; the other lists are empty, whatever the file has there.

    Raises:
        DataError: if the file cannot be read, or has no such list.
    """
    raw = read_annotation_file(path)
    try:
        _refuse_other_than_utf8(raw)
        records = msgspec.json.decode(raw, type=_ImageList).images
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        records = _parse_plainly(raw, path, ("images",))["images"]
    sound, places, lost = _READ["images"](records, findings)
    return CocoContent(
        sound,
        Annotations.room_for(0),
        [],
        {"images": places, "annotations": np.zeros(0, np.int64), "categories": np.zeros(0, np.int64)},
        {"images": lost, "annotations": set(), "categories": set()},
    )


def unsafe_file_name(name: Any) -> str | None:
    """Tell why a file name must not be opened, or None: it has to stay inside the image folder."""
    if not isinstance(name, str) or not name:
        return "expected a file name"
    if _CONTROL_CHARACTER.search(name):
        return "which holds a control character"
    if "://" in name:
        return "which is an address; images must lie in the image folder"
    if name[0] in "/\\" or name[1:3] in (":\\", ":/"):
        return "which is an absolute path; names are relative to the image folder"
    if ".." in name and ".." in name.replace("\\", "/").split("/"):
        return "which leaves the image folder"
    if len(name) > 1024 and len(name.encode(errors="replace")) > 4096:
        return "which is longer than a path can be"
    return None


def read_annotation_file(path: Path) -> bytes:
    """Return the bytes of a file as UTF-8 without a byte order mark.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        if is_system_limit(error):
            raise
        hint = (
            did_you_mean_file(path) if isinstance(error, FileNotFoundError) else files_inside(path, "*.json")
        )
        raise DataError(f"annotation file {path} cannot be read: {error.strerror or error}{hint}") from None
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # as some editors on Windows save
        return decode_text(raw, errors="surrogatepass").encode("utf-8", "surrogatepass")
    return raw.removeprefix(codecs.BOM_UTF8)


def split_records(raw: bytes, path: Path) -> dict[str, Any]:
    """Take a file apart into its keys, and the three lists of COCO into records that are not parsed yet.

    Returns:
        For each key a `msgspec.Raw`, for the lists a list of them. A file that only a forgiving parser reads (NaN) comes as plain values.

    Raises:
        DataError: if the file is no JSON, or a list is missing.
    """
    try:
        _refuse_other_than_utf8(raw)
        content = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        return content | {key: msgspec.json.decode(content[key], type=list[msgspec.Raw]) for key in LISTS}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        return _parse_plainly(raw, path)


def parse_record(record: Any) -> Any:
    """Return a record of `split_records` as plain values."""
    return json.loads(bytes(record)) if isinstance(record, msgspec.Raw) else record


def _refuse_other_than_utf8(raw: bytes) -> None:
    """Raise `UnicodeDecodeError` for text that is no UTF-8, which parsers do not notice in what they skip; little of it is decoded at a time."""
    if not raw.isascii():
        decoder = codecs.getincrementaldecoder("utf-8")()
        view = memoryview(raw)
        for start in range(0, len(raw), 1 << 20):
            decoder.decode(view[start : start + (1 << 20)])
        decoder.decode(b"", final=True)


def _parse_plainly(raw: bytes, path: Path, lists: Sequence[str] = LISTS) -> dict[str, Any]:
    try:
        content = json.loads(raw)
    except json.JSONDecodeError as error:
        what = (
            f"{error.msg}, line {error.lineno} column {error.colno}" if raw.strip() else "the file is empty"
        )
        raise DataError(f"{path} is not valid JSON: {what}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid JSON: not UTF-8 at byte {error.start}") from None
    except (RecursionError, ValueError) as error:  # ValueError: a number with thousands of digits
        raise DataError(
            f"{path} is not valid JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}"
        ) from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a {type(content).__name__}, expected an object with {_lists_in_words(lists)}"
        )
    for key in lists:
        if not isinstance(content.get(key), list):
            found = "is missing" if key not in content else f"is a {type(content[key]).__name__}"
            raise DataError(
                f'{path}: "{key}" {found}, expected a list; COCO files have images, annotations and categories'
            )
    return content


def _lists_in_words(lists: Sequence[str]) -> str:
    *first, last = lists
    return f"lists {', '.join(first)} and {last}" if first else f"a list {last}"


def _decode_leniently(raw: bytes, path: Path, findings: Findings) -> CocoContent:
    """Decode a file that is not as it should be; keep the sound records and list the faults of the others."""
    return sound_records(split_records(raw, path), findings)


def sound_records(content: dict[str, Any], findings: Findings) -> CocoContent:
    """Return the records of `split_records` that are sound in themselves; the others are noted in `findings`."""
    sound = {}
    places = {}
    lost = {}
    for key, read in _READ.items():
        sound[key], places[key], lost[key] = read(content[key], findings)
    count = len(content["annotations"])
    masks = _mask_sizes(content["annotations"], findings)
    return CocoContent(**sound, places=places, lost=lost, num_annotations=count, mask_sizes=masks)


def _mask_sizes(records: list[Any], findings: Findings) -> dict[int, tuple[int, int]]:
    """Return (width, height) of each mask that a box was computed from, by position."""
    computed = (note.index.tolist() for note in findings.notes if note.kind == Kind.BOX_COMPUTED)
    sizes = {
        place: mask_size(parse_record(records[place]).get("segmentation"))
        for place in chain.from_iterable(computed)
    }
    return {place: size for place, size in sizes.items() if size is not None}


def _read_annotations(records: list[Any], findings: Findings) -> tuple[Annotations, np.ndarray, set[int]]:
    """Return what `_sound` does, as columns; a block at a time, so that few records are there at once."""
    columns = Annotations.room_for(len(records))
    count = 0
    places = [np.zeros(0, np.int64)]
    lost = set()
    decoder = msgspec.json.Decoder(list[AnnotationRecord])
    repaired: list[tuple[int, int]] = []
    for start in range(0, len(records), BLOCK):
        block = records[start : start + BLOCK]
        try:
            sound = Annotations.of(decoder.decode(b"[" + b",".join(block) + b"]"))
            where = np.arange(start, start + len(block))
        except (
            msgspec.MsgspecError,
            UnicodeDecodeError,
            RecursionError,
            OverflowError,
            TypeError,
        ):  # TypeError: plain values, no bytes
            kept, where, without = _sound(
                block, "annotations", _annotation_faults, AnnotationRecord, findings, start
            )
            sound = Annotations.of(kept)
            lost |= without
        repaired += _boxes_from_segmentations(sound, where, records)
        places.append(where)
        columns.put(count, sound)
        count += len(sound)
    if repaired:
        index, ids = np.array(repaired, np.int64).T
        findings.note(Kind.BOX_COMPUTED, "annotations", index, ids)
    return columns.first(count), np.concatenate(places), lost


def _boxes_from_segmentations(
    block: Annotations, places: np.ndarray, records: list[Any]
) -> list[tuple[int, int]]:
    """Give boxes that are missing or have no area those of their polygons or masks; return (place, id) of each."""
    repaired = []
    for row in np.flatnonzero(~(block.bbox[:, 2:] > 0).all(1)):  # NaN stands for a box that is missing
        place = int(places[row])
        box = box_of_segmentation(parse_record(records[place]).get("segmentation"))
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
    """Return the records that can be used, where they stood, and the ids that the others have or mean to have."""
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
        except (ValueError, RecursionError) as error:  # not UTF-8, a number with thousands of digits
            findings.fault(Kind.NO_OBJECT, f"cannot be read: {str(error)[:80]}", where, index)
            continue
        if not isinstance(record, dict):
            findings.fault(Kind.NO_OBJECT, f"a {type(record).__name__}, expected an object", where, index)
            continue
        faults = list(faults_of(record))
        for fault, what in faults:
            findings.fault(fault, what, where, index, record["id"] if is_id(record.get("id")) else None)
        if faults:
            meant = meant_id(record.get("id"))
            lost |= set() if meant is None else {meant}
        else:
            kept.append(_made_of(record, kind))
            places.append(index)
    return kept, np.array(places, np.int64), lost


def _decoded(record: Any, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Return a record in its own type; None if it cannot be decoded that way, or has ids that are too large."""
    if not isinstance(record, msgspec.Raw):
        return None
    try:
        decoded = decoder.decode(record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    numbers = (value for value in msgspec.structs.astuple(decoded) if isinstance(value, int))
    return decoded if all(abs(value) <= LARGEST_ID for value in numbers) else None


def _made_of(record: dict[str, Any], kind: type[msgspec.Struct]) -> Any:
    """Return plain values that have no fault as a record in its own type."""
    known = {name: record[name] for name in kind.__struct_fields__ if name in record}
    if kind is AnnotationRecord and is_box_missing(record):
        known["bbox"] = _NO_BOX
    return kind(**known)


def _image_faults(record: dict[str, Any]) -> Iterator[tuple[Kind, str]]:
    if not is_id(record.get("id")):
        yield Kind.BAD_ID, f"{_shown(record, 'id')}, expected a whole number from 0"
    if reason := unsafe_file_name(record.get("file_name")):
        yield Kind.BAD_FILE_NAME, f"{_shown(record, 'file_name')}, {reason}"
    for key in ("width", "height"):
        if not is_id(record.get(key)):
            yield Kind.BAD_SIZE, f"{_shown(record, key)}, expected pixels, a whole number from 1"


def _annotation_faults(record: dict[str, Any]) -> Iterator[tuple[Kind, str]]:
    for key in ("id", "image_id", "category_id"):
        if not is_id(record.get(key)):
            yield Kind.BAD_ID, f"{_shown(record, key)}, expected a whole number from 0"
    box = record.get("bbox")
    if is_box_missing(record) and box_of_segmentation(record.get("segmentation")) is not None:
        pass  # the box is computed from it
    elif not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        yield Kind.BAD_BOX, f"{_shown(record, 'bbox')}, expected four numbers [x, y, width, height]"
    if record.get("area") is not None and not _is_number(record["area"]):
        yield Kind.BAD_AREA, f"{_shown(record, 'area')}, expected a number from 0"
    if record.get("iscrowd", 0) is not None and not is_id(record.get("iscrowd", 0)):
        yield Kind.BAD_CROWD, f"{_shown(record, 'iscrowd')}, expected 0 or 1"

    if record.get("ignore", 0) not in (None, False, True):  # 0 and 1 are equal to these
        yield Kind.BAD_IGNORE, f"{_shown(record, 'ignore')}, expected 0 or 1"


def is_box_missing(record: dict[str, Any]) -> bool:
    """Return whether an annotation has no box at all: no `bbox`, null or an empty list."""
    return record.get("bbox") in (None, [])


_NO_BOX = (math.nan,) * 4


def _category_faults(record: dict[str, Any]) -> Iterator[tuple[Kind, str]]:
    if not is_id(record.get("id")):
        yield Kind.BAD_ID, f"{_shown(record, 'id')}, expected a whole number from 0"
    if not isinstance(record.get("name"), str):
        yield Kind.BAD_NAME, f"{_shown(record, 'name')}, expected a name"


def meant_id(value: Any) -> int | None:
    """Return the id that a value is or plainly means (7, "7", 7.0), or None."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if is_id(value) else None


def is_id(value: Any) -> bool:
    """Tell whether a value can be an id: a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_ID


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(record: dict[str, Any], key: str) -> str:
    """Describe a wrong value within a bounded length."""
    if key not in record:
        return f'no "{key}"'
    text = repr(record[key])
    return f"{key} is {text[:80]}{'...' if len(text) > 80 else ''}"


_READ: dict[str, Callable[[list[Any], Findings], tuple[Any, np.ndarray, set[int]]]] = {
    "images": lambda records, findings: _sound(records, "images", _image_faults, ImageRecord, findings),
    "annotations": _read_annotations,
    "categories": lambda records, findings: _sound(
        records, "categories", _category_faults, CategoryRecord, findings
    ),
}
"""For each list of a file, what reads its records."""
