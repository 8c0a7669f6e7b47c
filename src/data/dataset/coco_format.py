"""COCO annotation files as compact arrays, checked by array arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.hashing import hash64
from .box_formats import COCO, BoxFormat, Suspicion, suspect, to_coco
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
        sizes, starts = self.sizes.numpy().astype("<i4"), self.starts.tolist()
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
        labels.raise_if_faulty()
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
        name_starts=_running_total(map(len, names)),
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
    rows, ledger = _read_boxes(content, references, findings, box_format)
    return Examination(content, findings, table, rows, ledger)


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
    differing, details = [], []
    for position in np.flatnonzero((sizes != written).any(1)).tolist():
        image, (width, height) = images[position], sizes[position].tolist()
        differing.append(index[position])
        details.append(f"{image.file_name}: {width} x {height} in place of {image.width} x {image.height}")
        image.width, image.height = width, height
    ids = np.array([content.images[i].id for i in differing], object)
    places = content.places["images"][np.array(differing, np.int64)]
    findings.note(Kind.TRUE_SIZE, "images", places, ids, np.array(details, object))


class References(NamedTuple):
    """What the M annotations of a file refer to."""

    image_of: np.ndarray
    """`[M]`: positions in the list of images."""
    category_of: np.ndarray
    """`[M]`: positions in the sorted category ids."""
    sound: np.ndarray
    """`[M]` bool: both are there, and the image has a size."""
    sizes: np.ndarray
    """`[M, 2]` float64, (width, height) of the image in pixels; of an unsound one any."""


def _check_references(content: CocoContent, category_ids: list[int], findings: Findings) -> References:
    """Find the image and the category of each annotation, and what is wrong with its other numbers."""
    images = content.images
    ids, image_ids, categories, crowds, ignored = (
        _whole_numbers(key, content, findings)
        for key in ("id", "image_id", "category_id", "iscrowd", "ignore")
    )
    areas = content.annotations.area
    image_of, known_image = _positions(
        image_ids, np.array([image.id for image in images if is_id(image.id)], np.int64)
    )
    category_of, known_category = _positions(categories, np.array(category_ids, np.int64))
    known = ", ".join(map(str, category_ids[:20])) + (" ..." if len(category_ids) > 20 else "")
    lost_image = np.isin(image_ids, list(content.lost["images"]))
    lost_category = np.isin(categories, list(content.lost["categories"]))
    orphaned = ~known_image & (image_ids >= 0) & ~lost_image
    unknown = ~known_category & (categories >= 0) & ~lost_category
    for kind, bad, text in (
        (Kind.ORPHAN, orphaned, lambda i: f"image_id {image_ids[i]} is not among the images"),
        (
            Kind.UNKNOWN_CATEGORY,
            unknown,
            lambda i: f"category_id {categories[i]} is unknown; known ids: {known}",
        ),
        (Kind.BAD_CROWD, crowds > 1, lambda i: f"iscrowd is {crowds[i]}, expected 0 or 1"),
        (Kind.BAD_IGNORE, ignored > 1, lambda i: f"ignore is {ignored[i]}, expected 0 or 1"),
        (Kind.BAD_AREA, areas < 0, lambda i: f"area is {areas[i]:g}, expected a number from 0"),
    ):
        for i in np.flatnonzero(bad):
            findings.fault(kind, text(i), "annotations", content.places["annotations"][i], ids[i])
    measured = np.array([_has_size(image) for image in images] or [False], bool)
    sound = known_image & known_category
    sound &= measured[np.where(sound, image_of, 0)]
    sizes = np.array([(image.width, image.height) for image in images] or [(0, 0)], np.float64)
    return References(image_of, category_of, sound, sizes[np.where(sound, image_of, 0)])


def _read_boxes(
    content: CocoContent, references: References, findings: Findings, box_format: BoxFormat | None
) -> tuple[dict[str, Tensor], LabelLedger]:
    """Bring the boxes into their images, and keep account of what becomes of them.

    Returns:
        `starts`, `boxes`, `categories`, `areas` and `crowds` of `CocoLabels`, the rows in the order of images; and the account.
    """
    records, places = content.annotations, content.places["annotations"]
    image_of, category_of, sound, sizes = references
    xywh, ids = to_coco(records.bbox, sizes, box_format or COCO), records.id.clip(min=-1)
    sound = sound & ~_masks_of_another_size(content, sound, sizes, findings)
    with np.errstate(over="ignore"):  # absurd sizes become infinite, and are clipped
        corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        corners = corners.astype(np.float32)  # as they will be stored
    inside = np.clip(corners, 0, np.tile(sizes, 2))
    flat = sound & (corners[:, 2:] <= corners[:, :2]).any(1)
    outside = sound & ~flat & (inside[:, 2:] <= inside[:, :2]).any(1)
    beyond = sound & ~flat & ~outside & (abs(corners - inside) > 0.5).any(1)
    kept = sound & ~flat & ~outside
    without_area = kept & np.isnan(records.area)
    large_area = kept & (records.area > 1.01 * sizes.prod(1))
    areas = np.where(without_area | large_area, (inside[:, 2:] - inside[:, :2]).prod(1), records.area)
    crowds, ignored = records.iscrowd == 1, records.ignore == 1
    again = _repeated_rows(image_of, category_of, xywh, kept)

    for kind, mask, details in (
        (Kind.REPEATED_ANNOTATION, _repeated(ids) & (ids >= 0), None),
        (Kind.FLAT, flat, records.bbox),
        (Kind.OUTSIDE, outside, records.bbox),
        (Kind.BEYOND, beyond, records.bbox),
        (Kind.NO_AREA, without_area, None),
        (Kind.LARGE_AREA, large_area, None),
        (Kind.REPEATED_BOX, again, records.bbox),
        (Kind.IGNORED, kept & ignored, None),
    ):
        index = np.flatnonzero(mask)
        findings.note(
            kind, "annotations", places[index], ids[index], None if details is None else details[index]
        )
    if box_format is None and (found := suspect(xywh[sound], sizes[sound])):
        findings.fault(Kind.BOX_FORMAT, _describe_format(found))

    ledger = LabelLedger(findings.path, content.num_annotations)
    ledger.add("faulty, or of an image or category that is not listed", ledger.boxes - sound.sum(), "lost")
    ledger.add("without area or reversed", flat.sum(), "lost")
    ledger.add("outside their image", outside.sum(), "lost")
    ledger.add("crowd regions", (kept & crowds).sum(), "left out")
    ledger.add("flagged to be ignored", (kept & ignored & ~crowds).sum(), "left out")
    learned = kept & ~crowds & ~ignored
    computed = [note.index for note in findings.notes if note.kind == Kind.BOX_COMPUTED]
    from_segmentation = np.isin(places, np.concatenate(computed)) if computed else np.zeros(len(places), bool)
    ledger.add("computed from a polygon or mask", (learned & from_segmentation).sum(), "changed")
    ledger.add("clipped to their image", (learned & beyond).sum(), "changed")
    ledger.add("listed more than once", (learned & again).sum(), "changed")

    order = np.flatnonzero(kept)
    order = order[np.argsort(image_of[order], kind="stable")]
    counts = np.bincount(image_of[order], minlength=len(content.images))
    rows = {
        "starts": _running_total(counts),
        "boxes": torch.from_numpy(inside[order].astype(np.float32)),
        "categories": torch.from_numpy(category_of[order]),
        "areas": torch.from_numpy(areas[order].astype(np.float32)),
        "crowds": torch.from_numpy((crowds | ignored)[order]),
    }
    return rows, ledger


def _masks_of_another_size(
    content: CocoContent, sound: np.ndarray, sizes: np.ndarray, findings: Findings
) -> np.ndarray:
    """Return which boxes `[M]` were computed from a mask that has not the size of its image; each is a fault."""
    places = content.places["annotations"]
    bad = np.zeros(len(places), bool)
    for row, place in enumerate(places.tolist()) if content.mask_sizes else ():
        size = content.mask_sizes.get(place)
        if size is not None and sound[row] and size != tuple(sizes[row]):
            bad[row] = True
            width, height = map(int, sizes[row])
            what = f"no box, and a mask of {size[0]} x {size[1]} pixels for an image of {width} x {height}"
            findings.fault(Kind.BAD_BOX, what, "annotations", place, int(content.annotations.id[row]))
    return bad


def _describe_format(found: Suspicion) -> str:
    if not found.likely:
        return (
            f"{found.what}; COCO has [x, y, width, height] in pixels, and no other format fits either: were the images "
            "resized, or do boxes belong to other images?"
        )
    likely = found.likely[0]
    others = f" (or {', '.join(map(str, found.likely[1:3]))})" if len(found.likely) > 1 else ""
    return (
        f"{found.what}, nearly all would fit as {likely}{others}; COCO has [x, y, width, height] in pixels: convert the "
        f"file with tools/dataset/check.py --fix DIR --boxes {likely.order} --units {likely.unit}, or set "
        f"dataset.box_order={likely.order} and dataset.box_unit={likely.unit}"
    )


def _repeated_rows(
    image_of: np.ndarray, category_of: np.ndarray, boxes: np.ndarray, considered: np.ndarray
) -> np.ndarray:
    """Return which boxes `[M]` another one before repeats exactly: same image, category and numbers."""
    rows = np.flatnonzero(considered)
    columns = np.column_stack([image_of[rows], category_of[rows], boxes[rows].view(np.int64).reshape(-1, 4)])
    key = np.zeros(len(rows), np.uint64)
    for column in columns.view(
        np.uint64
    ).T:  # one number for each row: sorting those is far quicker than sorting rows
        key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    mask = np.zeros(len(considered), bool)
    mask[rows[_repeated(key)]] = True
    return mask


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
