"""COCO annotation files as compact arrays, checked by array arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .coco_records import CocoContent, ImageRecord, is_id, read_records, unsafe_file_name
from .findings import Findings, Kind

OUTSIDE_LIMIT = 0.01
"""Share of boxes wholly outside their image above which the file is refused."""

CORNERS_LIMIT = 0.1
"""Share of boxes that reach beyond their image, while nearly all fit as corners, from which on they are taken for corners."""


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
        start, end = self.name_starts.numpy()[index : index + 2]
        return self.name_bytes.numpy()[start:end].tobytes().decode()

    @property
    def most_boxes(self) -> int:
        """The number of boxes of the image that has most."""
        return int(self.starts.diff().max())

    def rows(self, index: int) -> slice:
        """Return which boxes belong to an image."""
        return slice(*self.starts.numpy()[index : index + 2])


def load_coco(path: str | Path, true_sizes: TrueSizes | None = None) -> CocoLabels:
    """Read and check an annotation file.

    Boxes without area and boxes wholly outside their image are dropped, boxes partly outside are clipped, missing
    areas computed; all of it is counted in `findings.notes`.

    Args:
        path: the file.
        true_sizes: gives the images other sizes than their records do, before boxes are held against them.

    Raises:
        DataError: one error with every fault that cannot be mended.
    """
    labels = inspect_coco(path, true_sizes)
    if isinstance(labels, Findings):
        labels.raise_if_faulty()
    return labels


def inspect_coco(path: str | Path, true_sizes: TrueSizes | None = None) -> CocoLabels | Findings:
    """Read and check an annotation file; return the findings alone if they contain faults.

    Raises:
        DataError: if the file cannot be read as COCO at all.
    """
    content, findings, table, rows = examine_coco(path, true_sizes)
    if findings.faults:
        return findings
    names = [image.file_name.encode() for image in content.images]
    return CocoLabels(
        findings.path,
        torch.tensor([image.id for image in content.images], dtype=torch.int64),
        torch.tensor([(image.width, image.height) for image in content.images], dtype=torch.int32).view(
            -1, 2
        ),
        **rows,
        category_ids=list(table),
        category_names=list(table.values()),
        name_bytes=torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8),
        name_starts=_running_total(map(len, names)),
        findings=findings,
    )


class Examination(NamedTuple):
    """All that is known of a file, whatever is wrong with it."""

    content: CocoContent
    findings: Findings
    categories: dict[int, str]
    """Names by id, sorted."""
    rows: dict[str, Tensor]
    """`starts`, `boxes`, `categories`, `areas` and `crowds` of `CocoLabels`; without the boxes that cannot be used."""


def examine_coco(path: str | Path, true_sizes: TrueSizes | None = None) -> Examination:
    """Read an annotation file and go through all of it, past its faults.

    Raises:
        DataError: if the file cannot be read as COCO at all.
    """
    findings = Findings(Path(path))
    return examine_records(read_records(findings.path, findings), findings, true_sizes)


def examine_records(
    content: CocoContent, findings: Findings, true_sizes: TrueSizes | None = None
) -> Examination:
    """Go through records that have been read, past the faults in `findings`, and add to them."""
    table = _check_categories(content, findings)
    _check_images(content, findings)
    if true_sizes:
        _correct_sizes(content, true_sizes, findings)
    return Examination(content, findings, table, _check_annotations(content, list(table), findings))


def _check_categories(content: CocoContent, findings: Findings) -> dict[int, str]:
    records, places = content.categories, content.places["categories"]
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
    findings.note(
        Kind.REPEATED_NAME,
        content,
        "categories",
        np.array([counts[name] > 1 for name in names], bool),
        np.array([record.id for record in records], object),
        np.array(names, object),
    )
    return dict(sorted(table.items()))


def _check_images(content: CocoContent, findings: Findings) -> None:
    records, places = content.images, content.places["images"]
    if not records and not findings.faults:
        findings.fault(Kind.EMPTY_LIST, "images is empty")
    seen_ids, seen_names, repeated = set(), set(), np.zeros(len(records), bool)
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
    findings.note(
        Kind.REPEATED_FILE,
        content,
        "images",
        repeated,
        np.array([r.id for r in records], object),
        np.array([r.file_name for r in records], object),
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
    differs, details = np.zeros(len(content.images), bool), np.full(len(content.images), "", object)
    for position in np.flatnonzero((sizes != written).any(1)).tolist():
        image, (width, height) = images[position], sizes[position].tolist()
        differs[index[position]] = True
        details[index[position]] = (
            f"{image.file_name}: {width} x {height} in place of {image.width} x {image.height}"
        )
        image.width, image.height = width, height
    findings.note(
        Kind.TRUE_SIZE,
        content,
        "images",
        differs,
        np.array([image.id for image in content.images], object),
        details,
    )


def _check_annotations(
    content: CocoContent, category_ids: list[int], findings: Findings
) -> dict[str, Tensor]:
    """Return `starts`, `boxes`, `categories`, `areas` and `crowds` of `CocoLabels`, the rows in the order of images."""
    records, images = content.annotations, content.images
    ids, image_ids, categories, crowds = (
        _whole_numbers(key, content, findings) for key in ("id", "image_id", "category_id", "iscrowd")
    )
    xywh, areas = records.bbox, records.area

    image_of, known_image = _positions(
        image_ids, np.array([image.id for image in images if is_id(image.id)], np.int64)
    )
    category_of, known_category = _positions(categories, np.array(category_ids, np.int64))
    known = ", ".join(map(str, category_ids[:20])) + (" ..." if len(category_ids) > 20 else "")
    lost_image, lost_category = (
        np.isin(values, list(content.lost[where]))
        for where, values in (("images", image_ids), ("categories", categories))
    )
    for kind, bad, text in (
        (
            Kind.ORPHAN,
            ~known_image & (image_ids >= 0) & ~lost_image,
            lambda i: f"image_id {image_ids[i]} is not among the images",
        ),
        (
            Kind.UNKNOWN_CATEGORY,
            ~known_category & (categories >= 0) & ~lost_category,
            lambda i: f"category_id {categories[i]} is unknown; known ids: {known}",
        ),
        (Kind.BAD_CROWD, crowds > 1, lambda i: f"iscrowd is {crowds[i]}, expected 0 or 1"),
        (Kind.BAD_AREA, areas < 0, lambda i: f"area is {areas[i]:g}, expected a number from 0"),
    ):
        for i in np.flatnonzero(bad):
            findings.fault(kind, text(i), "annotations", content.places["annotations"][i], ids[i])
    measured = np.array([_has_size(image) for image in images] or [False], bool)
    sound = known_image & known_category
    sound &= measured[np.where(sound, image_of, 0)]
    sizes = np.array([(image.width, image.height) for image in images] or [(0, 0)], np.float64)
    size = sizes[np.where(sound, image_of, 0)]

    with np.errstate(over="ignore"):  # absurd sizes become infinite, and are clipped
        corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1).astype(
            np.float32
        )  # as they will be stored
    inside = np.clip(corners, 0, np.tile(size, 2))
    flat = sound & (corners[:, 2:] <= corners[:, :2]).any(1)
    outside = sound & ~flat & (inside[:, 2:] <= inside[:, :2]).any(1)
    beyond = sound & ~flat & ~outside & (abs(corners - inside) > 0.5).any(1)
    kept = sound & ~flat & ~outside
    missing = kept & np.isnan(areas)
    areas = np.where(missing, (inside[:, 2:] - inside[:, :2]).prod(1), areas)
    findings.note(Kind.REPEATED_ANNOTATION, content, "annotations", _repeated(ids) & (ids >= 0), ids)
    findings.note(Kind.FLAT, content, "annotations", flat, ids, xywh)
    findings.note(Kind.OUTSIDE, content, "annotations", outside, ids, xywh)
    findings.note(Kind.BEYOND, content, "annotations", beyond, ids, xywh)
    findings.note(Kind.NO_AREA, content, "annotations", missing, ids)
    if outside.sum() > OUTSIDE_LIMIT * len(records):
        findings.fault(
            Kind.CORNERS,
            f"{outside.sum()} of {len(records)} boxes lie wholly outside their image; is bbox [x1, y1, x2, y2] "
            "where COCO has [x, y, width, height]?",
        )
    elif _are_corners(xywh[sound], size[sound]):
        findings.fault(
            Kind.CORNERS,
            f"{beyond.sum()} of {len(records)} boxes reach out of their image, nearly all would fit if bbox were [x1, y1, x2, y2]; "
            "COCO has [x, y, width, height]",
        )

    order = np.flatnonzero(kept)
    order = order[np.argsort(image_of[order], kind="stable")]
    counts = np.bincount(image_of[order], minlength=len(images))
    return {
        "starts": _running_total(counts),
        "boxes": torch.from_numpy(inside[order].astype(np.float32)),
        "categories": torch.from_numpy(category_of[order]),
        "areas": torch.from_numpy(areas[order].astype(np.float32)),
        "crowds": torch.from_numpy(crowds[order] == 1),
    }


def _are_corners(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Tell whether boxes `[M, 4]` were written as xyxy: as such nearly all fit into their images, as xywh many do not."""
    fit = (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes >= -1).all(1) & (boxes[:, 2:] <= sizes + 1).all(1)
    with np.errstate(over="ignore"):
        beyond = (boxes[:, :2] + boxes[:, 2:] > 1.01 * sizes + 1).any(1)
    return bool(beyond.sum() >= max(3, CORNERS_LIMIT * len(boxes)) and fit.mean() >= 1 - OUTSIDE_LIMIT)


def _whole_numbers(key: str, content: CocoContent, findings: Findings) -> np.ndarray:
    """Return a column of ids; negative ones are faults, and become -1."""
    values, ids = getattr(content.annotations, key), content.annotations.id
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


def _repeated(ids: np.ndarray) -> np.ndarray:
    """Return which ids have come before."""
    first = np.unique(ids, return_index=True)[1]
    mask = np.ones(len(ids), bool)
    mask[first] = False
    return mask


def _running_total(counts: Iterable[int]) -> Tensor:
    return torch.cat(
        [torch.zeros(1, dtype=torch.int64), torch.tensor(list(counts), dtype=torch.int64).cumsum(0)]
    )
