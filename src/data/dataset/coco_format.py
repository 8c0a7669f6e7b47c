"""COCO annotation files as compact arrays, checked by array arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.hashing import hash64
from .box_checks import References, read_boxes, running_total
from .box_formats import BoxFormat
from .coco_records import CocoContent, ImageRecord, is_id, read_records, unsafe_file_name
from .findings import Findings, Kind
from .label_ledger import LabelLedger

TrueSizes = Callable[[list[str], np.ndarray], np.ndarray]
"""From the file names of images and the sizes `[N, 2]` in their records to those that count."""


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
    """`[M]` bool: regions of crowds and objects flagged to be ignored, which are neither learned nor scored."""
    category_ids: list[int]
    """Sorted."""
    category_names: list[str]
    name_bytes: Tensor
    """All file names in UTF-8, end to end, uint8."""
    name_starts: Tensor
    """`[N + 1]` int64."""
    findings: Findings
    ledger: LabelLedger

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, index: int) -> str:
        """Return the file name of an image, relative to the image folder."""
        start, end = self.name_starts.numpy()[index : index + 2]
        return self.name_bytes.numpy()[start:end].tobytes().decode("utf-8", "surrogatepass")

    @property
    def most_boxes(self) -> int:
        """The number of boxes of the image that has most."""
        return int(self.starts.diff().max())

    def name_hashes(self) -> Tensor:
        """Return a number for each file name, `[N]` int64; a file that is listed again has another one."""
        seen: Counter[str] = Counter()
        hashes = np.empty(len(self), np.int64)
        for index in range(len(self)):
            name = self.file_name(index)
            hashes[index] = hash64(f"{name}\0{seen[name]}".encode("utf-8", "surrogatepass"))
            seen[name] += 1
        return torch.from_numpy(hashes)

    def label_hashes(self) -> Tensor:
        """Return a number for the size and the boxes of each image, `[N]` int64, whichever number its categories have."""
        ids = np.array(self.category_ids, np.int64)[self.categories.numpy()]
        columns = (
            self.boxes.numpy(),
            self.areas.numpy()[:, None],
            ids[:, None],
            self.crowds.numpy()[:, None],
        )
        packed = np.concatenate([np.ascontiguousarray(column).view(np.uint8) for column in columns], 1)
        sizes = self.sizes.numpy().astype("<i4")
        starts = self.starts.tolist()
        hashes = np.empty(len(self), np.int64)
        for index in range(len(self)):
            hashes[index] = hash64(
                sizes[index].tobytes() + packed[starts[index] : starts[index + 1]].tobytes()
            )
        return torch.from_numpy(hashes)

    def rows(self, index: int) -> slice:
        """Return which boxes belong to an image."""
        return slice(*self.starts.numpy()[index : index + 2])

    def as_coco(self, ids: Tensor) -> dict[str, Any]:
        """Return the labels as a COCO dictionary.

        Args:
            ids: `[C]` int64, the id that each category has in it.
        """
        names = dict(zip(ids.tolist(), self.category_names))
        image_of_box = torch.repeat_interleave(self.image_ids, self.starts.diff())
        xywh = torch.cat([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], 1)
        rows = zip(
            image_of_box.tolist(),
            ids[self.categories].tolist(),
            xywh.tolist(),
            self.areas.tolist(),
            self.crowds.int().tolist(),
        )
        return {
            "images": [
                {"id": i, "width": w, "height": h}
                for i, (w, h) in zip(self.image_ids.tolist(), self.sizes.tolist())
            ],
            "annotations": [
                {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": a, "iscrowd": k}
                for n, (i, c, b, a, k) in enumerate(rows, start=1)
            ],  # evaluators take id 0 for "no match"
            "categories": [{"id": i, "name": name} for i, name in sorted(names.items())],
        }


def load_coco(
    path: str | Path, true_sizes: TrueSizes | None = None, box_format: BoxFormat | None = None
) -> CocoLabels:
    """Read and check an annotation file.

    Boxes without area and boxes wholly outside their image are dropped, boxes partly outside are clipped, missing
    boxes and areas computed; all of it is counted in `ledger` and listed in `findings.notes`.

    Args:
        path: the file.
        true_sizes: gives the images other sizes than their records do, before boxes are compared with them.
        box_format: how `bbox` describes a box; None expects COCO's way and looks for signs of another one.

    Raises:
        DataError: one error with every fault that cannot be repaired.
    """
    labels = inspect_coco(path, true_sizes, box_format)
    if isinstance(labels, Findings):
        raise labels.error()
    return labels


def inspect_coco(
    path: str | Path, true_sizes: TrueSizes | None = None, box_format: BoxFormat | None = None
) -> CocoLabels | Findings:
    """Read and check an annotation file; return the findings alone if they contain faults.

    Raises:
        DataError: if the file cannot be read as COCO at all.
    """
    content, findings, table, rows, ledger = examine_coco(path, true_sizes, box_format)
    if findings.faults:
        return findings
    names = [image.file_name.encode("utf-8", "surrogatepass") for image in content.images]
    sizes = [(image.width, image.height) for image in content.images]
    return CocoLabels(
        findings.path,
        torch.tensor([image.id for image in content.images], dtype=torch.int64),
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
    """All that is known of a file, whatever is wrong with it."""

    content: CocoContent
    findings: Findings
    categories: dict[int, str]
    """Names by id, sorted."""
    rows: dict[str, Tensor]
    """`starts`, `boxes`, `categories`, `areas` and `crowds` of `CocoLabels`; without the boxes that cannot be used."""
    ledger: LabelLedger


def examine_coco(
    path: str | Path, true_sizes: TrueSizes | None = None, box_format: BoxFormat | None = None
) -> Examination:
    """Read an annotation file and go through all of it, past its faults.

    Raises:
        DataError: if the file cannot be read as COCO at all.
    """
    findings = Findings(Path(path))
    return examine_records(read_records(findings.path, findings), findings, true_sizes, box_format)


def examine_records(
    content: CocoContent,
    findings: Findings,
    true_sizes: TrueSizes | None = None,
    box_format: BoxFormat | None = None,
) -> Examination:
    """Go through records that have been read, past the faults in `findings`, and add to them."""
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
            findings.fault(
                Kind.BAD_ID, f"id is {record.id}, expected a whole number from 0", "categories", place
            )
        elif record.id in table:
            findings.fault(Kind.REPEATED_CATEGORY, f"id {record.id} is used twice", "categories", place)
        elif not record.name:
            findings.fault(Kind.BAD_NAME, "the name is empty", "categories", place, record.id)
            content.lost["categories"].add(record.id)
        else:
            table[record.id] = record.name
    names = [record.name for record in records]
    counts = Counter(names)
    repeated = np.flatnonzero(np.array([counts[name] > 1 for name in names], bool))
    findings.note(
        Kind.REPEATED_NAME,
        "categories",
        places[repeated],
        np.array([record.id for record in records], object)[repeated],
        np.array(names, object)[repeated],
    )
    return dict(sorted(table.items()))


def check_images(content: CocoContent, findings: Findings) -> None:
    """Add what is wrong with the records of images to the findings."""
    records = content.images
    places = content.places["images"]
    if not records and not findings.faults:
        findings.fault(Kind.EMPTY_LIST, "images is empty")
    seen_ids = set()
    seen_names = set()
    repeated = np.zeros(len(records), bool)
    for index, (record, place) in enumerate(zip(records, places)):
        if not is_id(record.id):
            findings.fault(Kind.BAD_ID, f"id is {record.id}, expected a whole number from 0", "images", place)
        elif record.id in seen_ids:
            findings.fault(Kind.REPEATED_IMAGE, "this id is used twice", "images", place, record.id)
        if reason := unsafe_file_name(record.file_name):
            findings.fault(
                Kind.BAD_FILE_NAME,
                f"file_name is {record.file_name[:80]!r}, {reason}",
                "images",
                place,
                record.id,
            )
        if not _has_size(record):
            findings.fault(
                Kind.BAD_SIZE,
                f"size is {record.width} x {record.height}, expected pixels, whole numbers from 1",
                "images",
                place,
                record.id,
            )
        repeated[index] = record.file_name in seen_names
        seen_ids.add(record.id)
        seen_names.add(record.file_name)
    again = np.flatnonzero(repeated)
    findings.note(
        Kind.REPEATED_FILE,
        "images",
        places[again],
        np.array([r.id for r in records], object)[again],
        np.array([r.file_name for r in records], object)[again],
    )


def _has_size(image: ImageRecord) -> bool:
    return 1 <= image.width < 1 << 31 and 1 <= image.height < 1 << 31


def _correct_sizes(content: CocoContent, true_sizes: TrueSizes, findings: Findings) -> None:
    """Give the images, those with a safe name and a possible size, the sizes that count."""
    index = [
        i
        for i, image in enumerate(content.images)
        if _has_size(image) and unsafe_file_name(image.file_name) is None
    ]
    images = [content.images[i] for i in index]
    written = np.array([(image.width, image.height) for image in images], np.int64).reshape(-1, 2)
    sizes = true_sizes([image.file_name for image in images], written)
    differing = []
    details = []
    for position in np.flatnonzero((sizes != written).any(1)).tolist():
        image = images[position]
        (width, height) = sizes[position].tolist()
        differing.append(index[position])
        details.append(f"{image.file_name}: {width} x {height} in place of {image.width} x {image.height}")
        image.width, image.height = width, height
    ids = np.array([content.images[i].id for i in differing], object)
    places = content.places["images"][np.array(differing, np.int64)]
    findings.note(Kind.TRUE_SIZE, "images", places, ids, np.array(details, object))


def _missing(values: np.ndarray, known: np.ndarray, lost: set[int]) -> np.ndarray:
    """Return which ids `[M]` name a record that is not listed; ids that faulty records have or mean to have are not counted."""
    return ~known & (values >= 0) & ~np.isin(values, list(lost))


def _add_faults(
    checks: Sequence[tuple[Kind, np.ndarray, np.ndarray, str]], content: CocoContent, findings: Findings
) -> None:
    """Add a fault for each annotation that a check finds.

    Args:
        checks: a kind, which annotations have it `[M]`, the value that each has, and a text with a place for the value.
        content: the annotations.
        findings: gets the faults.
    """
    places = content.places["annotations"]
    ids = content.annotations.id.clip(min=-1)
    for kind, bad, values, text in checks:
        for i in np.flatnonzero(bad):
            findings.fault(kind, text.format(values[i]), "annotations", places[i], ids[i])


def _check_references(content: CocoContent, category_ids: list[int], findings: Findings) -> References:
    """Find the image and the category of each annotation, and what is wrong with its other numbers."""
    images = content.images
    _, image_ids, categories, crowds, ignored = (
        _whole_numbers(key, content, findings)
        for key in ("id", "image_id", "category_id", "iscrowd", "ignore")
    )
    image_of, known_image = _positions(
        image_ids, np.array([image.id for image in images if is_id(image.id)], np.int64)
    )
    category_of, known_category = _positions(categories, np.array(category_ids, np.int64))
    listed = ", ".join(map(str, category_ids[:20])) + (" ..." if len(category_ids) > 20 else "")
    orphaned = _missing(image_ids, known_image, content.lost["images"])
    unknown = _missing(categories, known_category, content.lost["categories"])
    areas = content.annotations.area
    _add_faults(
        [
            (Kind.ORPHAN, orphaned, image_ids, "image_id {} is not among the images"),
            (Kind.UNKNOWN_CATEGORY, unknown, categories, f"category_id {{}} is unknown; known ids: {listed}"),
            (Kind.BAD_CROWD, crowds > 1, crowds, "iscrowd is {}, expected 0 or 1"),
            (Kind.BAD_IGNORE, ignored > 1, ignored, "ignore is {}, expected 0 or 1"),
            (Kind.BAD_AREA, areas < 0, areas, "area is {:g}, expected a number from 0"),
        ],
        content,
        findings,
    )
    return _sound_references(images, image_of, category_of, known_image & known_category)


def _sound_references(
    images: Sequence[ImageRecord], image_of: np.ndarray, category_of: np.ndarray, known: np.ndarray
) -> References:
    """Return the references of annotations whose image and category are known, if the image has a size."""
    measured = np.array([_has_size(image) for image in images] or [False], bool)
    sound = known & measured[np.where(known, image_of, 0)]
    sizes = np.array([(image.width, image.height) for image in images] or [(0, 0)], np.float64)
    return References(image_of, category_of, sound, sizes[np.where(sound, image_of, 0)])


def _whole_numbers(key: str, content: CocoContent, findings: Findings) -> np.ndarray:
    """Return a column of ids; negative ones are faults, and become -1."""
    values = getattr(content.annotations, key)
    ids = content.annotations.id
    for index in np.flatnonzero(values < 0):
        findings.fault(
            Kind.BAD_ID,
            f"{key} is {values[index]}, expected a whole number from 0",
            "annotations",
            content.places["annotations"][index],
            ids[index] if ids[index] >= 0 else None,
        )
    return values.clip(min=-1)


def _positions(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each value in `known`, and whether it is there at all."""
    if not len(known):
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)
    position = order[place]
    return position, known[position] == values
