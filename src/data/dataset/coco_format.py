"""COCO annotation files as compact arrays, checked with array operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.hashing import hash64
from .box_checks import References, read_boxes, running_total
from .box_formats import BoxFormat
from .coco_content import CocoContent, ImageRecord
from .coco_records import read_records
from .findings import Findings, Kind
from .image_names import unsafe_file_name
from .label_ledger import LabelLedger
from .record_faults import ID_EXPECTED, is_id

TrueSizes = Callable[[list[str], np.ndarray], np.ndarray]
"""Function from the file names of images and the sizes `[N, 2]` in their records to the sizes to use."""


@dataclass
class CocoLabels:
    """The labels of a data set with N images and M boxes.

    The boxes of image i are the rows from `starts[i]` to before `starts[i + 1]`.
    """

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
    """`[M]` bool: crowd regions and objects flagged to be ignored, which are neither learned nor scored."""
    category_ids: list[int]
    """Sorted."""
    category_names: list[str]
    name_bytes: Tensor
    """All file names, concatenated in UTF-8, uint8."""
    name_starts: Tensor
    """`[N + 1]` int64."""
    findings: Findings
    ledger: LabelLedger

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, index: int) -> str:
        """Return the file name of an image, relative to the image folder."""
        start, end = self.name_starts.numpy()[index : index + 2]
        encoded = self.name_bytes.numpy()[start:end].tobytes()
        return encoded.decode("utf-8", "surrogatepass")

    def name_hashes(self) -> Tensor:
        """Return a hash of each file name, `[N]` int64.

        A file that is listed twice gets two different hashes.
        """
        seen: Counter[str] = Counter()
        hashes = np.empty(len(self), np.int64)
        for index in range(len(self)):
            name = self.file_name(index)
            text = f"{name}\0{seen[name]}"
            hashes[index] = hash64(text.encode("utf-8", "surrogatepass"))
            seen[name] += 1
        return torch.from_numpy(hashes)

    def label_hashes(self) -> Tensor:
        """Return a hash of the size and the boxes of each image, `[N]` int64."""
        all_ids = np.array(self.category_ids, np.int64)
        ids = all_ids[self.categories.numpy()]
        columns = [
            self.boxes.numpy(),
            self.areas.numpy()[:, None],
            ids[:, None],
            self.crowds.numpy()[:, None],
        ]
        contiguous = map(np.ascontiguousarray, columns)
        as_bytes = [column.view(np.uint8) for column in contiguous]
        packed = np.concatenate(as_bytes, 1)
        sizes = self.sizes.numpy().astype("<i4")
        hashes = np.empty(len(self), np.int64)
        for index, (start, end) in enumerate(pairwise(self.starts.tolist())):
            size = sizes[index].tobytes()
            rows = packed[start:end].tobytes()
            hashes[index] = hash64(size + rows)
        return torch.from_numpy(hashes)

    def rows(self, index: int) -> slice:
        """Return the rows of the boxes that belong to an image."""
        start, end = self.starts.numpy()[index : index + 2]
        return slice(start, end)

    def as_coco(self, ids: Tensor) -> dict[str, Any]:
        """Return the labels as a COCO dictionary.

        Args:
            ids: `[C]` int64, the id of each category in the dictionary.
        """
        image_of_box = torch.repeat_interleave(
            self.image_ids, self.starts.diff()
        )
        corners = self.boxes[:, :2]
        extents = self.boxes[:, 2:] - corners
        xywh = torch.cat([corners, extents], 1)
        columns = {
            # from 1, because evaluators treat id 0 as "no match"
            "id": range(1, len(xywh) + 1),
            "image_id": image_of_box.tolist(),
            "category_id": ids[self.categories].tolist(),
            "bbox": xywh.tolist(),
            "area": self.areas.tolist(),
            "iscrowd": self.crowds.int().tolist(),
        }
        widths, heights = self.sizes.T.tolist()
        images = {
            "id": self.image_ids.tolist(),
            "width": widths,
            "height": heights,
        }
        names = dict(zip(ids.tolist(), self.category_names))
        sorted_ids = sorted(names)
        categories = {"id": sorted_ids, "name": [names[i] for i in sorted_ids]}
        return {
            "images": _as_records(images),
            "annotations": _as_records(columns),
            "categories": _as_records(categories),
        }


def _as_records(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return a dictionary for each row of columns of equal length."""
    rows = zip(*columns.values())
    return [dict(zip(columns, row)) for row in rows]


def load_coco(
    path: str | Path,
    true_sizes: TrueSizes | None = None,
    box_format: BoxFormat | None = None,
) -> CocoLabels:
    """Read and check an annotation file.

    Boxes without area and boxes entirely outside their image are dropped, boxes partly outside are clipped,
    and missing boxes and areas are computed. All of this is counted in `ledger` and listed in
    `findings.notes`.

    Args:
        path: annotation file.
        true_sizes: function that replaces the sizes in the records, before boxes are compared with them.
        box_format: format of `bbox`; None expects COCO's format and looks for signs of another one.

    Raises:
        DataError: if there are faults that cannot be fixed; one error lists all of them.
    """
    labels = inspect_coco(path, true_sizes, box_format)
    if isinstance(labels, Findings):
        raise labels.error()
    return labels


def inspect_coco(
    path: str | Path,
    true_sizes: TrueSizes | None = None,
    box_format: BoxFormat | None = None,
) -> CocoLabels | Findings:
    """Read and check an annotation file; return only the findings if they contain faults.

    Raises:
        DataError: if the file cannot be read as COCO at all.
    """
    content, findings, table, rows, ledger = examine_coco(
        path, true_sizes, box_format
    )
    if findings.faults:
        return findings
    ids = []
    names = []
    sizes = []
    for image in content.images:
        ids.append(image.id)
        names.append(image.file_name.encode("utf-8", "surrogatepass"))
        sizes.append((image.width, image.height))
    return CocoLabels(
        findings.path,
        torch.tensor(ids, dtype=torch.int64),
        torch.tensor(sizes, dtype=torch.int32).view(-1, 2),
        **rows,
        category_ids=list(table),
        category_names=list(table.values()),
        name_bytes=torch.frombuffer(
            bytearray(b"".join(names)), dtype=torch.uint8
        ),
        name_starts=running_total(map(len, names)),
        findings=findings,
        ledger=ledger,
    )


class Examination(NamedTuple):
    """The result of reading and checking a file, including its faults."""

    content: CocoContent
    findings: Findings
    categories: dict[int, str]
    """Names by id, sorted."""
    rows: dict[str, Tensor]
    """`starts`, `boxes`, `categories`, `areas` and `crowds` of `CocoLabels`, without unusable boxes."""
    ledger: LabelLedger


def examine_coco(
    path: str | Path,
    true_sizes: TrueSizes | None = None,
    box_format: BoxFormat | None = None,
    *,
    compares_all: bool = False,
) -> Examination:
    """Read and check an annotation file completely, without stopping at faults.

    Args:
        path: as for `load_coco`.
        true_sizes: as for `load_coco`.
        box_format: as for `load_coco`.
        compares_all: as for `Findings`.

    Raises:
        DataError: if the file cannot be read as COCO at all.
    """
    findings = Findings(Path(path), compares_all=compares_all)
    content = read_records(findings.path, findings)
    return examine_records(content, findings, true_sizes, box_format)


def examine_records(
    content: CocoContent,
    findings: Findings,
    true_sizes: TrueSizes | None = None,
    box_format: BoxFormat | None = None,
) -> Examination:
    """Check all records that have been read, and add to the findings."""
    table = _check_categories(content, findings)
    check_images(content, findings)
    if true_sizes:
        _correct_sizes(content, true_sizes, findings)
    references = _check_references(content, list(table), findings)
    rows, ledger = read_boxes(content, references, findings, box_format)
    return Examination(content, findings, table, rows, ledger)


def _check_categories(
    content: CocoContent, findings: Findings
) -> dict[int, str]:
    records = content.categories
    places = content.places["categories"]
    if not records and not findings.faults:
        findings.fault(Kind.EMPTY_LIST, "categories is empty")
    table: dict[int, str] = {}
    for record, place in zip(records, places):
        if not is_id(record.id):
            what = f"id is {record.id}, {ID_EXPECTED}"
            findings.fault(Kind.BAD_ID, what, "categories", place)
        elif record.id in table:
            what = f"id {record.id} is used twice"
            findings.fault(Kind.REPEATED_CATEGORY, what, "categories", place)
        elif not record.name:
            what = "the name is empty"
            findings.fault(Kind.BAD_NAME, what, "categories", place, record.id)
            content.lost["categories"].add(record.id)
        else:
            table[record.id] = record.name
    _note_repeated_names(content, findings)
    return dict(sorted(table.items()))


def _note_repeated_names(content: CocoContent, findings: Findings) -> None:
    """Add a note about the categories that share a name."""
    counts = Counter(record.name for record in content.categories)
    repeated = []
    ids = []
    names = []
    for index, record in enumerate(content.categories):
        if counts[record.name] > 1:
            repeated.append(index)
            ids.append(record.id)
            names.append(record.name)
    places = _rows(content.places["categories"], repeated)
    findings.note(
        Kind.REPEATED_NAME, "categories", places, _objects(ids), _objects(names)
    )


def check_images(content: CocoContent, findings: Findings) -> None:
    """Add the faults of the image records to the findings."""
    records = content.images
    places = content.places["images"]
    if not records and not findings.faults:
        findings.fault(Kind.EMPTY_LIST, "images is empty")
    seen_ids = set()
    seen_names = set()
    repeated = []
    ids = []
    names = []
    for index, (record, place) in enumerate(zip(records, places)):
        if not is_id(record.id):
            what = f"id is {record.id}, {ID_EXPECTED}"
            findings.fault(Kind.BAD_ID, what, "images", place)
        elif record.id in seen_ids:
            what = "this id is used twice"
            findings.fault(
                Kind.REPEATED_IMAGE, what, "images", place, record.id
            )
        reason = unsafe_file_name(record.file_name)
        if reason:
            what = f"file_name is {record.file_name[:80]!r}, {reason}"
            findings.fault(Kind.BAD_FILE_NAME, what, "images", place, record.id)
        if not _has_size(record):
            what = f"size is {record.width} x {record.height}, expected positive integers (pixels)"
            findings.fault(Kind.BAD_SIZE, what, "images", place, record.id)
        if record.file_name in seen_names:
            repeated.append(index)
            ids.append(record.id)
            names.append(record.file_name)
        seen_ids.add(record.id)
        seen_names.add(record.file_name)
    places = _rows(places, repeated)
    findings.note(
        Kind.REPEATED_FILE, "images", places, _objects(ids), _objects(names)
    )


def _objects(values: Sequence[Any]) -> np.ndarray:
    """Return Python values as an array; numbers may be too large for int64."""
    return np.array(values, object)


def _rows(values: np.ndarray, index: Sequence[int]) -> np.ndarray:
    """Return some rows of an array; unlike plain indexing, an empty list gives none."""
    return values[np.array(index, np.int64)]


def _has_size(image: ImageRecord) -> bool:
    return 1 <= image.width < 1 << 31 and 1 <= image.height < 1 << 31


def _correct_sizes(
    content: CocoContent,
    true_sizes: TrueSizes,
    findings: Findings,
) -> None:
    """Correct the sizes of the images that have a safe name and a valid size."""
    index = []
    names = []
    in_records = []
    for number, image in enumerate(content.images):
        if _has_size(image) and unsafe_file_name(image.file_name) is None:
            index.append(number)
            names.append(image.file_name)
            in_records.append((image.width, image.height))
    written = np.array(in_records, np.int64).reshape(-1, 2)
    sizes = true_sizes(names, written)
    differing = []
    ids = []
    details = []
    is_other = (sizes != written).any(1)
    for position in np.flatnonzero(is_other).tolist():
        image = content.images[index[position]]
        width, height = sizes[position].tolist()
        change = f"{width} x {height} instead of {image.width} x {image.height}"
        differing.append(index[position])
        ids.append(image.id)
        details.append(f"{image.file_name}: {change}")
        image.width = width
        image.height = height
    places = _rows(content.places["images"], differing)
    findings.note(
        Kind.TRUE_SIZE, "images", places, _objects(ids), _objects(details)
    )


def _missing(
    values: np.ndarray,
    known: np.ndarray,
    lost: set[int],
) -> np.ndarray:
    """Return a mask `[M]` of the ids whose record is not listed, except ids of faulty records."""
    belongs_to_faulty = np.isin(values, list(lost))
    return ~known & (values >= 0) & ~belongs_to_faulty


def _add_faults(
    kind: Kind,
    bad: np.ndarray,
    values: np.ndarray,
    text: str,
    content: CocoContent,
    findings: Findings,
) -> None:
    """Add a fault for each annotation with a bad value.

    Args:
        kind: kind of fault.
        bad: mask of these annotations, `[M]`.
        values: values of all annotations, `[M]`.
        text: format string for a value.
        content: content with the annotations.
        findings: findings to which the faults are added.
    """
    places = content.places["annotations"]
    ids = content.annotations.id.clip(min=-1)
    for row in np.flatnonzero(bad):
        what = text.format(values[row])
        findings.fault(kind, what, "annotations", places[row], ids[row])


def _check_references(
    content: CocoContent,
    category_ids: list[int],
    findings: Findings,
) -> References:
    """Find the image and the category of each annotation, and check its other numbers."""
    images = content.images
    _non_negative("id", content, findings)
    image_ids = _non_negative("image_id", content, findings)
    categories = _non_negative("category_id", content, findings)
    crowds = _non_negative("iscrowd", content, findings)
    ignored = _non_negative("ignore", content, findings)
    areas = content.annotations.area
    known_images = [image.id for image in images if is_id(image.id)]
    image_of, known_image = _positions(image_ids, known_images)
    category_of, known_category = _positions(categories, category_ids)
    listed = ", ".join(map(str, category_ids[:20]))
    if len(category_ids) > 20:
        listed += " ..."
    add = partial(_add_faults, content=content, findings=findings)
    bad = _missing(image_ids, known_image, content.lost["images"])
    add(Kind.ORPHAN, bad, image_ids, "image_id {} is not among the images")
    bad = _missing(categories, known_category, content.lost["categories"])
    text = f"category_id {{}} is unknown; known ids: {listed}"
    add(Kind.UNKNOWN_CATEGORY, bad, categories, text)
    add(Kind.BAD_CROWD, crowds > 1, crowds, "iscrowd is {}, expected 0 or 1")
    add(Kind.BAD_IGNORE, ignored > 1, ignored, "ignore is {}, expected 0 or 1")
    text = "area is {:g}, expected a non-negative number"
    add(Kind.BAD_AREA, areas < 0, areas, text)
    known = known_image & known_category
    return _sound_references(images, image_of, category_of, known)


def _sound_references(
    images: Sequence[ImageRecord],
    image_of: np.ndarray,
    category_of: np.ndarray,
    known: np.ndarray,
) -> References:
    """Return the references.

    Those are sound whose image and category are known and whose image has a valid size.
    """
    has_size = []
    all_sizes = []
    for image in images:
        has_size.append(_has_size(image))
        all_sizes.append((image.width, image.height))
    if not images:
        has_size.append(False)
        all_sizes.append((0, 0))
    images_or_first = np.where(known, image_of, 0)
    sound = known & np.array(has_size)[images_or_first]
    images_or_first = np.where(sound, image_of, 0)
    sizes = np.array(all_sizes, np.float64)[images_or_first]
    return References(image_of, category_of, sound, sizes)


def _non_negative(
    key: str,
    content: CocoContent,
    findings: Findings,
) -> np.ndarray:
    """Return a column of integers; negative ones are faults and become -1."""
    values = getattr(content.annotations, key)
    ids = content.annotations.id
    places = content.places["annotations"]
    for index in np.flatnonzero(values < 0):
        what = f"{key} is {values[index]}, {ID_EXPECTED}"
        record_id = ids[index] if ids[index] >= 0 else None
        findings.fault(
            Kind.BAD_ID, what, "annotations", places[index], record_id
        )
    return values.clip(min=-1)


def _positions(
    values: np.ndarray, known_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each value in `known_ids`, and a mask of the values that occur in it."""
    if not known_ids:
        position = np.zeros(len(values), np.int64)
        return position, np.zeros(len(values), bool)
    known = np.array(known_ids, np.int64)
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, values, sorter=order)
    place = place.clip(max=len(known) - 1)
    position = order[place]
    return position, known[position] == values
