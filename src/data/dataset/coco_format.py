"""Reads COCO annotation files into compact arrays, and finds every fault in them on the way.

A sound file is decoded straight into slim typed records (polygons and whatever else detection does not use are
skipped) and checked by array arithmetic. Only a file that does not decode that way is gone through record by record,
so that each fault can be named.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from ...core.errors import DataError

FAULTS_SHOWN = 20
OUTSIDE_LIMIT = 0.01
"""Share of boxes wholly outside their image above which the file is refused."""

LARGEST_ID = (1 << 63) - 1


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    width: int
    height: int


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | None = 0


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass
class _Content:
    """The sound records of a file, and where each stood in it."""

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]
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

    def note(self, kind: str, content: _Content, where: str, mask: np.ndarray, ids: np.ndarray, details: np.ndarray | None = None) -> None:
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
            more = f" ... and {len(self.faults) - FAULTS_SHOWN} more" if len(self.faults) > FAULTS_SHOWN else ""
            head = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
            raise DataError(f"{self.path} has {head}: " + "; ".join(self.faults[:FAULTS_SHOWN]) + more)


@dataclass
class CocoLabels:
    """The labels of a data set. N images, M boxes; the boxes of image i are rows `starts[i]` to `starts[i + 1]`."""

    path: Path
    image_ids: Tensor
    """`[N]` int64."""
    sizes: Tensor
    """`[N, 2]` int32, (width, height) in pixels."""
    starts: Tensor
    """`[N + 1]` int64."""
    boxes: Tensor
    """`[M, 4]` float32, xyxy in pixels, inside the image."""
    categories: Tensor
    """`[M]` int64, positions in `category_ids`."""
    areas: Tensor
    """`[M]` float32, square pixels."""
    crowds: Tensor
    """`[M]` bool."""
    category_ids: list[int]
    """Sorted."""
    category_names: list[str]
    name_bytes: Tensor
    """All file names in UTF-8, end to end, uint8."""
    name_starts: Tensor
    """`[N + 1]` int64."""
    findings: Findings

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, index: int) -> str:
        """Return the file name of an image, relative to the image folder."""
        start, end = self.name_starts.numpy()[index:index + 2]
        return self.name_bytes.numpy()[start:end].tobytes().decode()

    def rows(self, index: int) -> slice:
        """Return which boxes belong to an image."""
        return slice(*self.starts.numpy()[index:index + 2])


def load_coco(path: str | Path) -> CocoLabels:
    """Read and check an annotation file.

    Boxes without area and boxes wholly outside their image are dropped, boxes partly outside are clipped, missing
    areas computed; all of it is counted in `findings.notes`.

    Raises:
        DataError: one error with every fault that cannot be mended.
    """
    labels = inspect_coco(path)
    if isinstance(labels, Findings):
        labels.raise_if_faulty()
    return labels


def inspect_coco(path: str | Path) -> CocoLabels | Findings:
    """Read and check an annotation file; return the findings alone if they contain faults.

    Raises:
        DataError: if the file cannot be read as COCO at all.
    """
    path = Path(path)
    raw = _read(path)
    findings = Findings(path)
    try:
        file = msgspec.json.decode(raw, type=_File)
        content = _Content(file.images, file.annotations, file.categories,
                           {where: np.arange(len(getattr(file, where))) for where in ("images", "annotations", "categories")})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        content = _decode_leniently(raw, path, error, findings)
    category_ids, category_names = _check_categories(content, findings)
    _check_images(content, findings)
    rows = _check_annotations(content, category_ids, findings)
    if findings.faults:
        return findings
    names = [image.file_name.encode() for image in content.images]
    return CocoLabels(
        path, torch.tensor([image.id for image in content.images], dtype=torch.int64),
        torch.tensor([(image.width, image.height) for image in content.images], dtype=torch.int32).view(-1, 2), **rows,
        category_ids=category_ids, category_names=category_names, name_bytes=torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8),
        name_starts=_running_total(map(len, names)), findings=findings)


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


# ---- reading ----


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"annotation file {path} cannot be read: {error.strerror or error}") from None


def _decode_leniently(raw: bytes, path: Path, reason: Exception, findings: Findings) -> _Content:
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
    for key, fault_of, kind in (("images", _image_fault, _Image), ("annotations", _annotation_fault, _Annotation), ("categories", _category_fault, _Category)):
        sound[key], places[key] = _sound(parts[key], key, fault_of, kind, findings)
    if not findings.faults:
        raise DataError(f"{path} is not a COCO file: {reason}")
    return _Content(**sound, places=places)


def _sound(records: list[Any], where: str, fault_of: Callable[[dict], str | None], kind: type, findings: Findings) -> tuple[list[Any], np.ndarray]:
    kept, places = [], []
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            findings.faults.append(f"{where}[{index}] is a {type(record).__name__}, expected an object")
        elif fault := fault_of(record):
            shown = f" (id {record['id']})" if _is_id(record.get("id")) else ""
            findings.faults.append(f"{where}[{index}]{shown}: {fault}")
        else:
            kept.append(kind(**{name: record[name] for name in kind.__struct_fields__ if name in record}))
            places.append(index)
    return kept, np.array(places, np.int64)


def _image_fault(record: dict[str, Any]) -> str | None:
    if not _is_id(record.get("id")):
        return f"{_shown(record, 'id')}, expected a whole number from 0"
    if reason := unsafe_file_name(record.get("file_name")):
        return f"{_shown(record, 'file_name')}, {reason}"
    for key in ("width", "height"):
        if not _is_id(record.get(key)):
            return f"{_shown(record, key)}, expected pixels, a whole number from 1"
    return None


def _annotation_fault(record: dict[str, Any]) -> str | None:
    for key in ("id", "image_id", "category_id"):
        if not _is_id(record.get(key)):
            return f"{_shown(record, key)}, expected a whole number from 0"
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        return f"{_shown(record, 'bbox')}, expected four numbers [x, y, width, height]"
    if record.get("area") is not None and not _is_number(record["area"]):
        return f"{_shown(record, 'area')}, expected a number from 0"
    if record.get("iscrowd", 0) is not None and not _is_id(record.get("iscrowd", 0)):
        return f"{_shown(record, 'iscrowd')}, expected 0 or 1"
    return None


def _category_fault(record: dict[str, Any]) -> str | None:
    if not _is_id(record.get("id")):
        return f"{_shown(record, 'id')}, expected a whole number from 0"
    if not isinstance(record.get("name"), str):
        return f"{_shown(record, 'name')}, expected a name"
    return None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_ID


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(record: dict[str, Any], key: str) -> str:
    """Describe a wrong value within a bounded length."""
    if key not in record:
        return f'no "{key}"'
    text = repr(record[key])
    return f"{key} is {text[:80]}{'...' if len(text) > 80 else ''}"


# ---- checking ----


def _check_categories(content: _Content, findings: Findings) -> tuple[list[int], list[str]]:
    records = content.categories
    if not records and not findings.faults:
        findings.faults.append("categories is empty")
    table: dict[int, str] = {}
    for index, record in enumerate(records):
        where = content.place("categories", index)
        if not _is_id(record.id):
            findings.faults.append(f"{where}: id is {record.id}, expected a whole number from 0")
        elif record.id in table:
            findings.faults.append(f"{where}: id {record.id} is used twice")
        elif not record.name:
            findings.faults.append(f"{where} (id {record.id}): the name is empty")
        else:
            table[record.id] = record.name
    names = [record.name for record in records]
    counts = Counter(names)
    findings.note("category names used more than once", content, "categories", np.array([counts[name] > 1 for name in names], bool),
                  np.array([record.id for record in records], object), np.array(names, object))
    ids = sorted(table)
    return ids, [table[i] for i in ids]


def _check_images(content: _Content, findings: Findings) -> None:
    records = content.images
    if not records and not findings.faults:
        findings.faults.append("images is empty")
    seen_ids, seen_names, repeated = set(), set(), np.zeros(len(records), bool)
    for index, record in enumerate(records):
        where = f"{content.place('images', index)} (id {record.id})"
        if not _is_id(record.id):
            findings.faults.append(f"{content.place('images', index)}: id is {record.id}, expected a whole number from 0")
        elif record.id in seen_ids:
            findings.faults.append(f"{where}: this id is used twice")
        if reason := unsafe_file_name(record.file_name):
            findings.faults.append(f"{where}: file_name is {record.file_name[:80]!r}, {reason}")
        if not (1 <= record.width < 1 << 31 and 1 <= record.height < 1 << 31):
            findings.faults.append(f"{where}: size is {record.width} x {record.height}, expected pixels, whole numbers from 1")
        repeated[index] = record.file_name in seen_names
        seen_ids.add(record.id)
        seen_names.add(record.file_name)
    findings.note("files listed more than once", content, "images", repeated,
                  np.array([r.id for r in records], object), np.array([r.file_name for r in records], object))


def _check_annotations(content: _Content, category_ids: list[int], findings: Findings) -> dict[str, Tensor]:
    """Return `starts`, `boxes`, `categories`, `areas` and `crowds` of `CocoLabels`, the rows in the order of images."""
    records, images = content.annotations, content.images
    ids, image_ids, categories, crowds = (_whole_numbers([getattr(r, key) for r in records], key, content, findings)
                                          for key in ("id", "image_id", "category_id", "iscrowd"))
    xywh = np.fromiter(chain.from_iterable(r.bbox for r in records), np.float64, 4 * len(records)).reshape(-1, 4)
    areas = np.array([np.nan if r.area is None else r.area for r in records], np.float64)

    image_of, known_image = _positions(image_ids, np.array([image.id for image in images if _is_id(image.id)], np.int64))
    category_of, known_category = _positions(categories, np.array(category_ids, np.int64))
    known = ", ".join(map(str, category_ids[:20])) + (" ..." if len(category_ids) > 20 else "")
    for bad, text in ((~known_image, lambda i: f"image_id {image_ids[i]} is not among the images"),
                      (~known_category, lambda i: f"category_id {categories[i]} is unknown; known ids: {known}"),
                      (~np.isin(crowds, (0, 1)), lambda i: f"iscrowd is {crowds[i]}, expected 0 or 1"),
                      (areas < 0, lambda i: f"area is {areas[i]:g}, expected a number from 0")):
        findings.faults += [f"{content.place('annotations', i)} (id {ids[i]}): {text(i)}" for i in np.flatnonzero(bad)]
    sound = known_image & known_category
    sizes = np.array([(image.width, image.height) for image in images] or [(0, 0)], np.float64)
    size = sizes[np.where(sound, image_of, 0)]

    with np.errstate(over="ignore"):  # absurd sizes become infinite, and are clipped
        corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1).astype(np.float32)  # as they will be stored
    inside = np.clip(corners, 0, np.tile(size, 2))
    flat = sound & (corners[:, 2:] <= corners[:, :2]).any(1)
    outside = sound & ~flat & (inside[:, 2:] <= inside[:, :2]).any(1)
    beyond = sound & ~flat & ~outside & (abs(corners - inside) > 0.5).any(1)
    kept = sound & ~flat & ~outside
    missing = kept & np.isnan(areas)
    areas = np.where(missing, (inside[:, 2:] - inside[:, :2]).prod(1), areas)
    findings.note("annotation ids used more than once", content, "annotations", _repeated(ids), ids)
    findings.note("boxes without area, dropped", content, "annotations", flat, ids, xywh)
    findings.note("boxes outside their image, dropped", content, "annotations", outside, ids, xywh)
    findings.note("boxes reaching beyond their image, clipped", content, "annotations", beyond, ids, xywh)
    findings.note("missing areas, computed from the box", content, "annotations", missing, ids)
    if outside.sum() > OUTSIDE_LIMIT * len(records):
        findings.faults.append(f"{outside.sum()} of {len(records)} boxes lie wholly outside their image; is bbox [x1, y1, x2, y2] "
                               "where COCO has [x, y, width, height]?")

    order = np.flatnonzero(kept)
    order = order[np.argsort(image_of[order], kind="stable")]
    counts = np.bincount(image_of[order], minlength=len(images))
    return {"starts": _running_total(counts), "boxes": torch.from_numpy(inside[order].astype(np.float32)),
            "categories": torch.from_numpy(category_of[order]), "areas": torch.from_numpy(areas[order].astype(np.float32)),
            "crowds": torch.from_numpy(crowds[order] == 1)}


def _whole_numbers(values: list[Any], key: str, content: _Content, findings: Findings) -> np.ndarray:
    """Return ids as int64; ids that do not fit are faults."""
    values = [0 if value is None else value for value in values]
    for index, value in enumerate(values):
        if not 0 <= value <= LARGEST_ID:
            findings.faults.append(f"{content.place('annotations', index)}: {key} is {value}, expected a whole number from 0")
            values[index] = -1
    return np.array(values, np.int64)


def _positions(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each value in `known`, and whether it is there at all."""
    if not len(known):
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)
    position = order[place]
    return position, known[position] == values


def _repeated(ids: np.ndarray) -> np.ndarray:
    """Return which ids have come before."""
    first = np.unique(ids, return_index=True)[1]
    mask = np.ones(len(ids), bool)
    mask[first] = False
    return mask


def _running_total(counts: Iterable[int]) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(list(counts), dtype=torch.int64).cumsum(0)])
