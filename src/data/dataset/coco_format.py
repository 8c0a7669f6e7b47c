"""COCO annotation files as compact arrays, checked by array arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .coco_records import LARGEST_ID, CocoContent, Findings, is_id, read_records, unsafe_file_name

OUTSIDE_LIMIT = 0.01
"""Share of boxes wholly outside their image above which the file is refused."""


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
        start, end = self.name_starts.numpy()[index:index + 2]
        return self.name_bytes.numpy()[start:end].tobytes().decode()

    @property
    def most_boxes(self) -> int:
        """The number of boxes of the image that has most."""
        return int(self.starts.diff().max())

    def rows(self, index: int) -> slice:
        """Return which boxes belong to an image."""
        return slice(*self.starts.numpy()[index:index + 2])


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
    path = Path(path)
    findings = Findings(path)
    content = read_records(path, findings)
    category_ids, category_names = _check_categories(content, findings)
    _check_images(content, findings)
    if true_sizes and not findings.faults:
        _correct_sizes(content, true_sizes, findings)
    rows = _check_annotations(content, category_ids, findings)
    if findings.faults:
        return findings
    names = [image.file_name.encode() for image in content.images]
    return CocoLabels(
        path, torch.tensor([image.id for image in content.images], dtype=torch.int64),
        torch.tensor([(image.width, image.height) for image in content.images], dtype=torch.int32).view(-1, 2), **rows,
        category_ids=category_ids, category_names=category_names, name_bytes=torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8),
        name_starts=_running_total(map(len, names)), findings=findings)


def _check_categories(content: CocoContent, findings: Findings) -> tuple[list[int], list[str]]:
    records = content.categories
    if not records and not findings.faults:
        findings.faults.append("categories is empty")
    table: dict[int, str] = {}
    for index, record in enumerate(records):
        where = content.place("categories", index)
        if not is_id(record.id):
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


def _check_images(content: CocoContent, findings: Findings) -> None:
    records = content.images
    if not records and not findings.faults:
        findings.faults.append("images is empty")
    seen_ids, seen_names, repeated = set(), set(), np.zeros(len(records), bool)
    for index, record in enumerate(records):
        where = f"{content.place('images', index)} (id {record.id})"
        if not is_id(record.id):
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


def _correct_sizes(content: CocoContent, true_sizes: TrueSizes, findings: Findings) -> None:
    images = content.images
    written = np.array([(image.width, image.height) for image in images], np.int64).reshape(-1, 2)
    sizes = true_sizes([image.file_name for image in images], written)
    findings.note("sizes taken from the image files", content, "images", (sizes != written).any(1), np.array([image.id for image in images], object),
                  np.array([f"{image.file_name}: {w} x {h}" for image, (w, h) in zip(images, sizes.tolist())], object))
    for image, (width, height) in zip(images, sizes.tolist()):
        image.width, image.height = width, height


def _check_annotations(content: CocoContent, category_ids: list[int], findings: Findings) -> dict[str, Tensor]:
    """Return `starts`, `boxes`, `categories`, `areas` and `crowds` of `CocoLabels`, the rows in the order of images."""
    records, images = content.annotations, content.images
    ids, image_ids, categories, crowds = (_whole_numbers([getattr(r, key) for r in records], key, content, findings)
                                          for key in ("id", "image_id", "category_id", "iscrowd"))
    xywh = np.fromiter(chain.from_iterable(r.bbox for r in records), np.float64, 4 * len(records)).reshape(-1, 4)
    areas = np.array([np.nan if r.area is None else r.area for r in records], np.float64)

    image_of, known_image = _positions(image_ids, np.array([image.id for image in images if is_id(image.id)], np.int64))
    category_of, known_category = _positions(categories, np.array(category_ids, np.int64))
    known = ", ".join(map(str, category_ids[:20])) + (" ..." if len(category_ids) > 20 else "")
    for bad, text in ((~known_image & (image_ids >= 0), lambda i: f"image_id {image_ids[i]} is not among the images"),
                      (~known_category & (categories >= 0), lambda i: f"category_id {categories[i]} is unknown; known ids: {known}"),
                      (crowds > 1, lambda i: f"iscrowd is {crowds[i]}, expected 0 or 1"),
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


def _whole_numbers(values: list[Any], key: str, content: CocoContent, findings: Findings) -> np.ndarray:
    """Return ids as int64; ids that do not fit are faults, and become -1."""
    values = [0 if value is None else value for value in values]
    for index, value in enumerate(values):
        if not 0 <= value <= LARGEST_ID:
            own_id = content.annotations[index].id
            shown = f" (id {own_id})" if is_id(own_id) else ""
            findings.faults.append(f"{content.place('annotations', index)}{shown}: {key} is {value}, expected a whole number from 0")
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
