"""The records of a COCO annotation file, and what is wrong with them.

A sound file is decoded straight into slim typed records (polygons and whatever else detection does not use are
skipped). Only a file that does not decode that way is gone through record by record, so that each fault can be named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np

from ...core.errors import DataError
from ...runtime.limits import is_system_limit

FAULTS_SHOWN = 20
"""Faults that one message lists."""

LARGEST_ID = (1 << 63) - 1
"""Ids are kept as int64."""


class ImageRecord(msgspec.Struct, gc=False):
    """An entry of `images`; sizes in pixels."""

    id: int
    file_name: str
    width: int
    height: int


class AnnotationRecord(msgspec.Struct, gc=False):
    """An entry of `annotations`; `bbox` is x, y, width, height in pixels."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | None = 0


class CategoryRecord(msgspec.Struct, gc=False):
    """An entry of `categories`."""

    id: int
    name: str


class _File(msgspec.Struct):
    images: list[ImageRecord]
    annotations: list[AnnotationRecord]
    categories: list[CategoryRecord]


@dataclass
class CocoContent:
    """The sound records of a file, and where each stood in it."""

    images: list[ImageRecord]
    annotations: list[AnnotationRecord]
    categories: list[CategoryRecord]
    places: dict[str, np.ndarray]

    def place(self, where: str, index: int) -> str:
        """Name a record as it stands in the file: "annotations[7]"."""
        return f"{where}[{self.places[where][index]}]"


@dataclass(frozen=True)
class Note:
    """Something that was mended: what, and in which records."""

    kind: str
    where: str
    """"annotations", "images" or "categories"."""
    index: np.ndarray
    """Positions in that list, `[n]`."""
    ids: np.ndarray
    """Their ids, `[n]`."""
    details: np.ndarray | None = None
    """What to show of each, such as its box, `[n, ...]`."""

    def describe(self, position: int) -> str:
        """Return "annotations[3] (id 7) [1.0, 2.0, 0.0, 4.0]" for one of the records."""
        detail = "" if self.details is None else f" {self.details[position:position + 1].tolist()[0]}"
        return f"{self.where}[{self.index[position]}] (id {self.ids[position]}){detail}"


@dataclass
class Findings:
    """What was noticed in a file: faults stop the run, notes say what was dropped or filled in."""

    path: Path
    faults: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def note(self, kind: str, content: CocoContent, where: str, mask: np.ndarray, ids: np.ndarray, details: np.ndarray | None = None) -> None:
        """Add a note about the records under a mask, if there are any."""
        if mask.any():
            index = np.flatnonzero(mask)
            self.notes.append(Note(kind, where, content.places[where][index], ids[index], None if details is None else details[index]))

    def describe(self) -> list[str]:
        """Return one line a kind of note: what, how many, where first."""
        return [f"{self.path}: {note.kind}: {len(note.index)} (first: {note.describe(0)})" for note in self.notes]

    def raise_if_faulty(self) -> None:
        """Raise `DataError` with the first faults, if there are any."""
        if self.faults:
            head = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
            raise DataError(f"{self.path} has {head}: {listed(self.faults, '; ')}")


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """Join items for a message: the first ones, and how many more there are."""
    more = f" ... and {len(items) - FAULTS_SHOWN} more" if len(items) > FAULTS_SHOWN else ""
    return separator.join(items[:FAULTS_SHOWN]) + more


def read_records(path: Path, findings: Findings) -> CocoContent:
    """Read a file; records that are faulty in themselves are left out and noted in `findings`.

    Raises:
        DataError: if the file cannot be read as COCO at all.
    """
    raw = _read(path)
    try:
        file = msgspec.json.decode(raw, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _decode_leniently(raw, path, error, findings)
    return CocoContent(file.images, file.annotations, file.categories,
                       {where: np.arange(len(getattr(file, where))) for where in ("images", "annotations", "categories")})


def unsafe_file_name(name: Any) -> str | None:
    """Tell why a file name must not be opened, or None: it has to stay inside the image folder."""
    if not isinstance(name, str) or not name:
        return "expected a file name"
    if any(ord(c) < 32 for c in name):
        return "which holds a control character"
    if "://" in name:
        return "which is an address; images must lie in the image folder"
    if PurePosixPath(name).is_absolute() or name[:1] == "\\" or name[1:3] in (":\\", ":/"):
        return "which is an absolute path; names are relative to the image folder"
    if ".." in name.replace("\\", "/").split("/"):
        return "which leaves the image folder"
    if len(name.encode(errors="replace")) > 4096:
        return "which is longer than a path can be"
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        if is_system_limit(error):
            raise
        raise DataError(f"annotation file {path} cannot be read: {error.strerror or error}") from None


def _decode_leniently(raw: bytes, path: Path, reason: Exception, findings: Findings) -> CocoContent:
    """Decode a file that is not as it should be; keep the sound records and list the faults of the others."""
    try:
        content = json.loads(raw)
    except json.JSONDecodeError as error:
        what = f"{error.msg}, line {error.lineno} column {error.colno}" if raw.strip() else "the file is empty"
        raise DataError(f"{path} is not valid JSON: {what}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid JSON: not UTF-8 at byte {error.start}") from None
    except (RecursionError, ValueError) as error:  # ValueError: a number with thousands of digits
        raise DataError(f"{path} is not valid JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, expected an object with lists images, annotations and categories")
    parts = {}
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            found = "is missing" if key not in content else f"is a {type(content[key]).__name__}"
            raise DataError(f'{path}: "{key}" {found}, expected a list; COCO files have images, annotations and categories')
        parts[key] = content[key]
    sound, places = {}, {}
    for key, fault_of, kind in _KINDS:
        sound[key], places[key] = _sound(parts[key], key, fault_of, kind, findings)
    if not findings.faults:
        raise DataError(f"{path} is not a COCO file: {reason}")
    return CocoContent(**sound, places=places)


def _sound(records: list[Any], where: str, fault_of: Callable[[dict], str | None], kind: type, findings: Findings) -> tuple[list[Any], np.ndarray]:
    kept, places = [], []
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            findings.faults.append(f"{where}[{index}] is a {type(record).__name__}, expected an object")
        elif fault := fault_of(record):
            shown = f" (id {record['id']})" if is_id(record.get("id")) else ""
            findings.faults.append(f"{where}[{index}]{shown}: {fault}")
        else:
            kept.append(kind(**{name: record[name] for name in kind.__struct_fields__ if name in record}))
            places.append(index)
    return kept, np.array(places, np.int64)


def _image_fault(record: dict[str, Any]) -> str | None:
    if not is_id(record.get("id")):
        return f"{_shown(record, 'id')}, expected a whole number from 0"
    if reason := unsafe_file_name(record.get("file_name")):
        return f"{_shown(record, 'file_name')}, {reason}"
    for key in ("width", "height"):
        if not is_id(record.get(key)):
            return f"{_shown(record, key)}, expected pixels, a whole number from 1"
    return None


def _annotation_fault(record: dict[str, Any]) -> str | None:
    for key in ("id", "image_id", "category_id"):
        if not is_id(record.get(key)):
            return f"{_shown(record, key)}, expected a whole number from 0"
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        return f"{_shown(record, 'bbox')}, expected four numbers [x, y, width, height]"
    if record.get("area") is not None and not _is_number(record["area"]):
        return f"{_shown(record, 'area')}, expected a number from 0"
    if record.get("iscrowd", 0) is not None and not is_id(record.get("iscrowd", 0)):
        return f"{_shown(record, 'iscrowd')}, expected 0 or 1"
    return None


def _category_fault(record: dict[str, Any]) -> str | None:
    if not is_id(record.get("id")):
        return f"{_shown(record, 'id')}, expected a whole number from 0"
    if not isinstance(record.get("name"), str):
        return f"{_shown(record, 'name')}, expected a name"
    return None


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


_KINDS = (("images", _image_fault, ImageRecord), ("annotations", _annotation_fault, AnnotationRecord),
          ("categories", _category_fault, CategoryRecord))
"""For each list of a file, what is wrong with an entry, and its typed form."""
