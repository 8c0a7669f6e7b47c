"""Reads COCO annotation files into compact arrays, and finds every fault in them on the way.

The file is decoded straight into slim records (polygons and other fields that detection does not use are skipped),
checked record by record, and kept as a few tensors that worker processes share.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import torch
from torch import Tensor

from ...core.errors import DataError

FAULTS_SHOWN = 20
OUTSIDE_LIMIT = 0.01
"""Share of boxes wholly outside their image above which the file is refused."""


class _Image(msgspec.Struct, gc=False):
    id: Any = msgspec.UNSET
    file_name: Any = msgspec.UNSET
    width: Any = msgspec.UNSET
    height: Any = msgspec.UNSET


class _Annotation(msgspec.Struct, gc=False):
    id: Any = msgspec.UNSET
    image_id: Any = msgspec.UNSET
    category_id: Any = msgspec.UNSET
    bbox: Any = msgspec.UNSET
    area: Any = msgspec.UNSET
    iscrowd: Any = msgspec.UNSET


class _Category(msgspec.Struct, gc=False):
    id: Any = msgspec.UNSET
    name: Any = msgspec.UNSET


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass
class Findings:
    """What was noticed in a file: faults stop the run, notes say what was dropped or filled in."""

    path: Path
    faults: list[str] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    """(kind, record)."""

    def counts(self) -> dict[str, int]:
        """Return the number of notes of each kind."""
        return dict(Counter(kind for kind, _ in self.notes))

    def describe(self) -> list[str]:
        """Return one line a kind of note: what, how many, where first."""
        first: dict[str, str] = {}
        for kind, record in self.notes:
            first.setdefault(kind, record)
        return [f"{self.path}: {kind}: {count} (first: {first[kind]})" for kind, count in self.counts().items()]

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
    annotation_ids: Tensor
    """`[M]` int64."""
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
    areas computed, duplicate annotation ids replaced; all of it is counted in `findings.notes`.

    Raises:
        DataError: one error with every fault that cannot be mended.
    """
    path = Path(path)
    content = _decode(path)
    findings = Findings(path)
    category_ids, category_names = _check_categories(content.categories, findings)
    images = _check_images(content.images, findings)
    rows = _check_annotations(content.annotations, images, category_ids, findings)
    findings.raise_if_faulty()
    return _pack(path, list(images.values()), rows, category_ids, category_names, findings)


def _decode(path: Path) -> _File:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"annotation file {path} cannot be read: {error.strerror or error}") from None
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return msgspec.json.decode(raw, type=_File)
    except msgspec.ValidationError as error:
        raise DataError(f"{path} is not a COCO file: {error}; expected an object with lists images, annotations and categories") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {_where_json_breaks(raw, error)}") from None


def _where_json_breaks(raw: bytes, error: Exception) -> str:
    if not raw.strip():
        return "the file is empty"
    try:
        json.loads(raw)
    except json.JSONDecodeError as detail:
        return f"{detail.msg}, line {detail.lineno} column {detail.colno}"
    except UnicodeDecodeError as detail:
        return f"not UTF-8 at byte {detail.start}"
    except RecursionError:
        return "nested too deeply"
    return str(error)


def _check_categories(records: list[_Category], findings: Findings) -> tuple[list[int], list[str]]:
    table: dict[int, str] = {}
    for index, record in enumerate(records):
        where = f"categories[{index}]"
        if not _is_id(record.id):
            findings.faults.append(f"{where}: {_shown(record.id, 'id')}, expected a whole number from 0")
        elif record.id in table:
            findings.faults.append(f"{where}: id {record.id} is used twice")
        elif not isinstance(record.name, str) or not record.name:
            findings.faults.append(f"{where} (id {record.id}): {_shown(record.name, 'name')}, expected a name")
        else:
            table[record.id] = record.name
    for name, count in Counter(table.values()).items():
        if count > 1:
            findings.notes.append(("category names used more than once", repr(name)))
    if not records:
        findings.faults.append("categories is empty")
    ids = sorted(table)
    return ids, [table[i] for i in ids]


def _check_images(records: list[_Image], findings: Findings) -> dict[int, _Image]:
    images: dict[int, _Image] = {}
    files: dict[str, int] = {}
    for index, record in enumerate(records):
        where = f"images[{index}]"
        if not _is_id(record.id):
            findings.faults.append(f"{where}: {_shown(record.id, 'id')}, expected a whole number from 0")
            continue
        where = f"{where} (id {record.id})"
        if record.id in images:
            findings.faults.append(f"{where}: this id is used twice")
            continue
        if reason := unsafe_file_name(record.file_name):
            findings.faults.append(f"{where}: {_shown(record.file_name, 'file_name')}, {reason}")
            continue
        for key in ("width", "height"):
            value = getattr(record, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                findings.faults.append(f"{where}: {_shown(value, key)}, expected pixels, a whole number from 1")
                break
        if record.file_name in files:
            findings.notes.append(("files listed more than once", record.file_name))
        files[record.file_name] = index
        images[record.id] = record
    if not records:
        findings.faults.append("images is empty")
    return images


def _check_annotations(records: list[_Annotation], images: dict[int, _Image], category_ids: list[int],
                       findings: Findings) -> dict[int, list[tuple]]:
    """Return for each image id its rows (box xyxy, category position, area, crowd, annotation id)."""
    position = {category: index for index, category in enumerate(category_ids)}
    rows: dict[int, list[tuple]] = {image_id: [] for image_id in images}
    seen: set[int] = set()
    highest = max((r.id for r in records if _is_id(r.id)), default=0)
    outside = 0
    for index, record in enumerate(records):
        where = f"annotations[{index}]"
        if not _is_id(record.id):
            findings.faults.append(f"{where}: {_shown(record.id, 'id')}, expected a whole number from 0")
            continue
        where = f"{where} (id {record.id})"
        if fault := _annotation_fault(record, images, position, category_ids):
            findings.faults.append(f"{where}: {fault}")
            continue
        number = record.id
        if number in seen:
            highest += 1
            number = highest
            findings.notes.append(("annotation ids used twice, given new ones", where))
        seen.add(number)
        image = images[record.image_id]
        x, y, w, h = record.bbox
        if w <= 0 or h <= 0:
            findings.notes.append(("boxes without area, dropped", f"{where} {record.bbox}"))
            continue
        box = (max(x, 0), max(y, 0), min(x + w, image.width), min(y + h, image.height))
        if box[2] <= box[0] or box[3] <= box[1]:
            outside += 1
            findings.notes.append(("boxes outside their image, dropped", f"{where} {record.bbox} in {image.width} x {image.height}"))
            continue
        if x < -0.5 or y < -0.5 or x + w > image.width + 0.5 or y + h > image.height + 0.5:
            findings.notes.append(("boxes reaching beyond their image, clipped", f"{where} {record.bbox} in {image.width} x {image.height}"))
        area = record.area
        if area is msgspec.UNSET or area is None:
            area = w * h
            findings.notes.append(("missing areas, computed from the box", where))
        rows[record.image_id].append((box, position[record.category_id], area, bool(_set_or(record.iscrowd, 0)), number))
    if records and outside > OUTSIDE_LIMIT * len(records):
        findings.faults.append(f"{outside} of {len(records)} boxes lie wholly outside their image; is bbox [x1, y1, x2, y2] "
                               "where COCO has [x, y, width, height]?")
    return rows


def _annotation_fault(record: _Annotation, images: dict[int, _Image], position: dict[int, int], category_ids: list[int]) -> str | None:
    if not _is_id(record.image_id):
        return f"{_shown(record.image_id, 'image_id')}, expected a whole number"
    if record.image_id not in images:
        return f"image_id {record.image_id} is not among the images"
    if not _is_id(record.category_id):
        return f"{_shown(record.category_id, 'category_id')}, expected a whole number"
    if record.category_id not in position:
        known = ", ".join(map(str, category_ids[:20])) + (" ..." if len(category_ids) > 20 else "")
        return f"category_id {record.category_id} is unknown; known ids: {known}"
    box = record.bbox
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        return f"{_shown(box, 'bbox')}, expected four numbers [x, y, width, height]"
    if record.area is not msgspec.UNSET and record.area is not None and (not _is_number(record.area) or record.area < 0):
        return f"{_shown(record.area, 'area')}, expected a number from 0"
    if _set_or(record.iscrowd, 0) not in (0, 1):
        return f"{_shown(record.iscrowd, 'iscrowd')}, expected 0 or 1"
    return None


def unsafe_file_name(name: Any) -> str | None:
    """Tell why a file name must not be opened, or None: it has to stay inside the image folder."""
    if not isinstance(name, str) or not name:
        return "expected a file name"
    if "\0" in name or "\n" in name:
        return "which holds a control character"
    if "://" in name:
        return "which is an address; images must lie in the image folder"
    if PurePosixPath(name).is_absolute() or name[:1] == "\\" or name[1:3] in (":\\", ":/"):
        return "which is an absolute path; names are relative to the image folder"
    if ".." in name.replace("\\", "/").split("/"):
        return "which leaves the image folder"
    return None


def _pack(path: Path, images: list[_Image], rows: dict[int, list[tuple]], category_ids: list[int], category_names: list[str],
          findings: Findings) -> CocoLabels:
    flat = [row for image in images for row in rows[image.id]]
    boxes, categories, areas, crowds, numbers = zip(*flat) if flat else ((), (), (), (), ())
    names = [image.file_name.encode() for image in images]
    return CocoLabels(
        path, torch.tensor([image.id for image in images], dtype=torch.int64),
        torch.tensor([(image.width, image.height) for image in images], dtype=torch.int32).view(-1, 2),
        _running_total(len(rows[image.id]) for image in images), torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(categories, dtype=torch.int64), torch.tensor(areas, dtype=torch.float32), torch.tensor(crowds, dtype=torch.bool),
        torch.tensor(numbers, dtype=torch.int64), category_ids, category_names,
        torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8), _running_total(map(len, names)), findings)


def _running_total(counts: Iterable[int]) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(list(counts), dtype=torch.int64).cumsum(0)])


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _set_or(value: Any, default: Any) -> Any:
    return default if value is msgspec.UNSET or value is None else value


def _shown(value: Any, key: str) -> str:
    """Describe a wrong value within a bounded length."""
    if value is msgspec.UNSET:
        return f'no "{key}"'
    text = repr(value)
    return f"{key} is {text[:80]}{'...' if len(text) > 80 else ''}"
