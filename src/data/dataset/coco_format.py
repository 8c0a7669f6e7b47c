"""COCO annotation files as compact arrays, checked with array operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.hashing import hash64
from .box_checks import References, read_boxes, running_total
from .box_formats import BoxFormat
from .coco_records import (
    ID_EXPECTED,
    CocoContent,
    ImageRecord,
    is_id,
    read_records,
    unsafe_file_name,
)
from .findings import Findings, Kind
from .label_ledger import LabelLedger

TrueSizes = Callable[[list[str], np.ndarray], np.ndarray]
"""Function from the file names of images and the sizes `[N, 2]` in their records to the sizes to use."""


@dataclass
class CocoLabels:
    """The labels of a data set. N images, M boxes; the boxes of image i are rows `starts[i]` to `starts[i +
    1]`.
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
        return (
            self.name_bytes.numpy()[start:end]
            .tobytes()
            .decode("utf-8", "surrogatepass")
        )

    @property
    def most_boxes(self) -> int:
        """Maximum number of boxes in an image."""
        return int(self.starts.diff().max())

    def name_hashes(self) -> Tensor:
        """Return a hash of each file name, `[N]` int64; a file that is listed twice gets two different
        hashes.
        """
        seen: Counter[str] = Counter()
        hashes = np.empty(len(self), np.int64)
        for index in range(len(self)):
            name = self.file_name(index)
            hashes[index] = hash64(
                f"{name}\0{seen[name]}".encode("utf-8", "surrogatepass")
            )
            seen[name] += 1
        return torch.from_numpy(hashes)

    def label_hashes(self) -> Tensor:
        """Return a hash of the size and the boxes of each image, `[N]` int64."""
        ids = np.array(self.category_ids, np.int64)[self.categories.numpy()]
        columns = [
            self.boxes.numpy(),
            self.areas.numpy()[:, None],
            ids[:, None],
            self.crowds.numpy()[:, None],
        ]
        as_bytes = [np.ascontiguousarray(column).view(np.uint8) for column in columns]
        packed = np.concatenate(as_bytes, 1)
        sizes = self.sizes.numpy().astype("<i4")
        starts = self.starts.tolist()
        hashes = np.empty(len(self), np.int64)
        for index in range(len(self)):
            rows = packed[starts[index] : starts[index + 1]]
            hashes[index] = hash64(sizes[index].tobytes() + rows.tobytes())
        return torch.from_numpy(hashes)

    def rows(self, index: int) -> slice:
        """Return the rows of the boxes that belong to an image."""
        return slice(*self.starts.numpy()[index : index + 2])

    def as_coco(self, ids: Tensor) -> dict[str, Any]:
        """Return the labels as a COCO dictionary.

        Args:
            ids: `[C]` int64, the id of each category in the dictionary.
        """
        image_of_box = torch.repeat_interleave(self.image_ids, self.starts.diff())
        xywh = torch.cat([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], 1)
        columns = {
            "id": range(
                1, len(xywh) + 1
            ),  # from 1: evaluators treat id 0 as "no match"
            "image_id": image_of_box.tolist(),
            "category_id": ids[self.categories].tolist(),
            "bbox": xywh.tolist(),
            "area": self.areas.tolist(),
            "iscrowd": self.crowds.int().tolist(),
        }
        widths, heights = self.sizes.T.tolist()
        images = {"id": self.image_ids.tolist(), "width": widths, "height": heights}
        names = dict(zip(ids.tolist(), self.category_names))
        return {
            "images": _as_records(images),
            "annotations": _as_records(columns),
            "categories": [
                {"id": i, "name": name} for i, name in sorted(names.items())
            ],
        }


def _as_records(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return a dictionary for each row of columns of equal length."""
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


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
    content, findings, table, rows, ledger = examine_coco(path, true_sizes, box_format)
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
        name_bytes=torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8),
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
) -> Examination:
    """Read and check an annotation file completely, without stopping at faults.

    Raises:
        DataError: if the file cannot be read as COCO at all.
    """
    findings = Findings(Path(path))
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


def _check_categories(content: CocoContent, findings: Findings) -> dict[int, str]:
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
            findings.fault(
                Kind.REPEATED_CATEGORY,
                f"id {record.id} is used twice",
                "categories",
                place,
            )
        elif not record.name:
            findings.fault(
                Kind.BAD_NAME, "the name is empty", "categories", place, record.id
            )
            content.lost["categories"].add(record.id)
        else:
            table[record.id] = record.name
    counts = Counter(record.name for record in records)
    repeated = [
        index for index, record in enumerate(records) if counts[record.name] > 1
    ]
    ids = np.array([records[i].id for i in repeated], object)
    names = np.array([records[i].name for i in repeated], object)
    findings.note(Kind.REPEATED_NAME, "categories", _rows(places, repeated), ids, names)
    return dict(sorted(table.items()))


def check_images(content: CocoContent, findings: Findings) -> None:
    """Add the faults of the image records to the findings."""
    records = content.images
    places = content.places["images"]
    if not records and not findings.faults:
        findings.fault(Kind.EMPTY_LIST, "images is empty")
    seen_ids = set()
    seen_names = set()
    repeated = []
    for index, (record, place) in enumerate(zip(records, places)):
        if not is_id(record.id):
            findings.fault(
                Kind.BAD_ID, f"id is {record.id}, {ID_EXPECTED}", "images", place
            )
        elif record.id in seen_ids:
            findings.fault(
                Kind.REPEATED_IMAGE, "this id is used twice", "images", place, record.id
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
        seen_ids.add(record.id)
        seen_names.add(record.file_name)
    ids = np.array([records[i].id for i in repeated], object)
    names = np.array([records[i].file_name for i in repeated], object)
    findings.note(Kind.REPEATED_FILE, "images", _rows(places, repeated), ids, names)


def _rows(values: np.ndarray, index: Sequence[int]) -> np.ndarray:
    """Return some rows of an array; unlike plain indexing, an empty list gives none."""
    return values[np.array(index, np.int64)]


def _has_size(image: ImageRecord) -> bool:
    return 1 <= image.width < 1 << 31 and 1 <= image.height < 1 << 31


def _correct_sizes(
    content: CocoContent, true_sizes: TrueSizes, findings: Findings
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
    for position in np.flatnonzero((sizes != written).any(1)).tolist():
        image = content.images[index[position]]
        width, height = sizes[position].tolist()
        differing.append(index[position])
        ids.append(image.id)
        details.append(
            f"{image.file_name}: {width} x {height} instead of {image.width} x {image.height}"
        )
        image.width = width
        image.height = height
    places = _rows(content.places["images"], differing)
    findings.note(
        Kind.TRUE_SIZE,
        "images",
        places,
        np.array(ids, object),
        np.array(details, object),
    )


def _missing(values: np.ndarray, known: np.ndarray, lost: set[int]) -> np.ndarray:
    """Return a mask `[M]` of the ids whose record is not listed, except ids of faulty records."""
    return ~known & (values >= 0) & ~np.isin(values, list(lost))


def _add_faults(
    checks: Sequence[tuple[Kind, np.ndarray, np.ndarray, str]],
    content: CocoContent,
    findings: Findings,
) -> None:
    """Add a fault for each annotation that fails a check.

    Args:
        checks: kind of fault, mask of the annotations that have it `[M]`, their values `[M]`, and a format
            string for the value.
        content: content with the annotations.
        findings: findings to which the faults are added.
    """
    places = content.places["annotations"]
    ids = content.annotations.id.clip(min=-1)
    for kind, bad, values, text in checks:
        for i in np.flatnonzero(bad):
            findings.fault(
                kind, text.format(values[i]), "annotations", places[i], ids[i]
            )


def _check_references(
    content: CocoContent, category_ids: list[int], findings: Findings
) -> References:
    """Find the image and the category of each annotation, and check its other numbers."""
    images = content.images
    _whole_numbers("id", content, findings)
    image_ids = _whole_numbers("image_id", content, findings)
    categories = _whole_numbers("category_id", content, findings)
    crowds = _whole_numbers("iscrowd", content, findings)
    ignored = _whole_numbers("ignore", content, findings)
    known_images = [image.id for image in images if is_id(image.id)]
    image_of, known_image = _positions(image_ids, np.array(known_images, np.int64))
    category_of, known_category = _positions(
        categories, np.array(category_ids, np.int64)
    )
    listed = ", ".join(map(str, category_ids[:20]))
    if len(category_ids) > 20:
        listed += " ..."
    orphaned = _missing(image_ids, known_image, content.lost["images"])
    unknown = _missing(categories, known_category, content.lost["categories"])
    areas = content.annotations.area
    checks = [
        (Kind.ORPHAN, orphaned, image_ids, "image_id {} is not among the images"),
        (
            Kind.UNKNOWN_CATEGORY,
            unknown,
            categories,
            f"category_id {{}} is unknown; known ids: {listed}",
        ),
        (Kind.BAD_CROWD, crowds > 1, crowds, "iscrowd is {}, expected 0 or 1"),
        (Kind.BAD_IGNORE, ignored > 1, ignored, "ignore is {}, expected 0 or 1"),
        (
            Kind.BAD_AREA,
            areas < 0,
            areas,
            "area is {:g}, expected a non-negative number",
        ),
    ]
    _add_faults(checks, content, findings)
    return _sound_references(
        images, image_of, category_of, known_image & known_category
    )


def _sound_references(
    images: Sequence[ImageRecord],
    image_of: np.ndarray,
    category_of: np.ndarray,
    known: np.ndarray,
) -> References:
    """Return the references; `sound` are those whose image and category are known and whose image has a
    size.
    """
    has_size = []
    all_sizes = []
    for image in images:
        has_size.append(_has_size(image))
        all_sizes.append((image.width, image.height))
    if not images:
        has_size.append(False)
        all_sizes.append((0, 0))
    sound = known & np.array(has_size)[np.where(known, image_of, 0)]
    sizes = np.array(all_sizes, np.float64)
    return References(image_of, category_of, sound, sizes[np.where(sound, image_of, 0)])


def _whole_numbers(key: str, content: CocoContent, findings: Findings) -> np.ndarray:
    """Return a column of integers; negative ones are faults and become -1."""
    values = getattr(content.annotations, key)
    ids = content.annotations.id
    places = content.places["annotations"]
    for index in np.flatnonzero(values < 0):
        what = f"{key} is {values[index]}, {ID_EXPECTED}"
        record_id = ids[index] if ids[index] >= 0 else None
        findings.fault(Kind.BAD_ID, what, "annotations", places[index], record_id)
    return values.clip(min=-1)


def _positions(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each value in `known`, and a mask of the values that occur in it."""
    if not len(known):
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)
    position = order[place]
    return position, known[position] == values
