"""Labelled images during a conversion: the result of reading YOLO or Pascal VOC, and its output as COCO."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ...core.commands import command_name
from ...core.counts import counted
from ...core.errors import DataError
from ...core.fault_lists import listed
from ...runtime.files import write_atomically
from ...runtime.own_files import write_report

DECIMALS = 3
"""Decimals of pixel values in the output."""


class LabelledImage(NamedTuple):
    """One image and its boxes."""

    file_name: str
    """Relative to the image folder, with slashes."""
    size: tuple[int, int]
    """(width, height) in pixels."""
    categories: np.ndarray
    """`[T]` int64, category ids."""
    boxes: np.ndarray
    """`[T, 4]` float64, xyxy in pixels, inside the image."""
    crowds: np.ndarray
    """`[T]` bool."""


@dataclass
class LabelledImages:
    """A data set in its parts."""

    folder: Path
    """Folder that the file names are relative to."""
    categories: dict[int, str]
    """Names by id."""
    parts: dict[str, list[LabelledImage]]
    """"train", and "val" and "test" if there are any."""
    notes: Counter[str] = field(default_factory=Counter)
    """Numbers of changed or dropped items, by description."""


SHOWN = 5
"""Number of faults of a kind that a message lists."""


class Fault(NamedTuple):
    """A fault that prevents the conversion."""

    kind: str
    """Text that is equal for all faults of a kind, such as "coordinates far outside 0 to 1"."""
    where: str
    """File and line."""
    what: str


class Faults:
    """Faults of label files, collected until all files have been read."""

    def __init__(self, source: Path) -> None:
        """Create an empty list."""
        self.source = source
        self.found: list[Fault] = []

    def add(
        self,
        kind: str,
        where: str,
        what: str,
    ) -> None:
        """Add a fault."""
        self.found.append(Fault(kind, where, what))

    def raise_if_any(self) -> None:
        """Raise `ConversionError` if there are faults, with the number of each kind and the first ones."""
        if self.found:
            raise ConversionError(self.source, self.found)


class ConversionError(DataError):
    """Label files have faults; nothing was written."""

    def __init__(self, source: Path, faults: Sequence[Fault]) -> None:
        """Describe the faults by kind; `faults` keeps all of them."""
        self.source = source
        self.faults = list(faults)
        kinds: dict[str, list[str]] = {}
        for fault in faults:
            kinds.setdefault(fault.kind, []).append(
                f"{fault.where}: {fault.what}"
            )
        parts = []
        for kind in sorted(kinds, key=lambda kind: -len(kinds[kind])):
            own = kinds[kind]
            shown = listed(
                own,
                "; ",
                shown=SHOWN,
                before_more="; ",
            )
            parts.append(f"{kind} ({len(own)}): {shown}")
        number = counted(len(faults), "fault")
        super().__init__(
            f"{source} has {number}, nothing was written: {'. '.join(parts)}. "
            f"{command_name('convert')} --report FILE writes all of them"
        )

    def write(self, path: Path) -> None:
        """Write all faults as JSON."""
        faults = [fault._asdict() for fault in self.faults]
        content = {
            "source": str(self.source),
            "num_faults": len(faults),
            "faults": faults,
        }
        write_report(path, content)


class Account(NamedTuple):
    """Faults and notes collected while label files are read."""

    faults: Faults
    notes: Counter[str]
    """Numbers of changed or dropped items, by description."""
    drop_boxes: bool = False
    """Drop boxes that cannot be used, instead of adding a fault."""
    drop_strays: bool = False
    """Leave out label files without an image, instead of adding a fault."""


UNUSABLE = "boxes without area or outside their image"

DROPPED = f"{UNUSABLE}, dropped"

CLIPPED = "boxes reaching beyond their image, clipped"

SLIGHTLY_CLIPPED = (
    "boxes reaching beyond their image by at most half a pixel, clipped"
)

ROUNDING = 2e-6
"""Fraction of a side that rounding to six decimals can add to a box; boxes within it are not counted."""


def boxes_inside(
    corners: np.ndarray,
    size: tuple[int, int],
    places: Sequence[str],
    account: Account,
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to their image.

    Args:
        corners: `[T, 4]`, xyxy in pixels; reversed corners are swapped.
        size: (width, height) of the image in pixels.
        places: place of each box, for messages.
        account: collects the changes, and unusable boxes as faults, or as notes if they may be dropped.

    Returns:
        The boxes `[T, 4]`, rounded as in the output, and a mask `[T]` of the usable ones.
    """
    points = corners.reshape(-1, 2, 2)
    low = points.min(1)
    high = points.max(1)
    ordered = np.concatenate([low, high], 1)
    swapped = (ordered != corners).any(1)
    account.notes["boxes with reversed corners, swapped"] += int(swapped.sum())
    limits = np.tile(size, 2)
    inside = np.clip(ordered, 0, limits).round(DECIMALS)
    kept = (inside[:, 2:] > inside[:, :2]).all(1)
    overhang = abs(inside - ordered)
    beyond = kept & (overhang > 0.5).any(1)
    account.notes[CLIPPED] += int(beyond.sum())
    rounding = ROUNDING * limits + 10.0**-DECIMALS
    slightly = kept & ~beyond & (overhang > rounding).any(1)
    account.notes[SLIGHTLY_CLIPPED] += int(slightly.sum())
    for row in np.flatnonzero(~kept).tolist():
        if account.drop_boxes:
            account.notes[DROPPED] += 1
        else:
            shown = ", ".join(f"{value:g}" for value in corners[row])
            what = f"corners {shown} in {size[0]} x {size[1]} pixels; --drop-boxes leaves it out"
            account.faults.add(UNUSABLE, places[row], what)
    return inside, kept


def write_coco_parts(data: LabelledImages, output: Path) -> Iterator[str]:
    """Write `train.json`, `val.json` ... into a folder, and yield a line for each. Images are not copied."""
    for part, images in data.parts.items():
        path = output / f"{part}.json"
        write = partial(_write, images=images, categories=data.categories)
        write_atomically(path, write)
        counts = [len(image.boxes) for image in images]
        empty = counts.count(0)
        boxes = counted(sum(counts), "box", "boxes")
        yield f"{path}: {counted(len(images), 'image')} ({empty} without objects), {boxes}"


def _write(
    file: BinaryIO,
    images: Sequence[LabelledImage],
    categories: dict[int, str],
) -> None:
    file.write(b'{"images": [')
    _write_list(file, _image_records(images))
    file.write(b'\n],\n"annotations": [')
    _write_list(file, _annotation_records(images))
    file.write(b'\n],\n"categories": ')
    records = []
    for category_id, name in sorted(categories.items()):
        records.append({"id": category_id, "name": name})
    file.write(json.dumps(records).encode() + b"}\n")


def _write_list(file: BinaryIO, records: Iterable[dict[str, Any]]) -> None:
    """Write the records of a list, one per line, separated by commas."""
    separator = b"\n"
    for record in records:
        file.write(separator + json.dumps(record).encode())
        separator = b",\n"


def _image_records(images: Sequence[LabelledImage]) -> Iterator[dict[str, Any]]:
    for image_id, image in enumerate(images, 1):
        yield {
            "id": image_id,
            "file_name": image.file_name,
            "width": image.size[0],
            "height": image.size[1],
        }


def _annotation_records(
    images: Sequence[LabelledImage],
) -> Iterator[dict[str, Any]]:
    annotation_ids = count(1)
    for image_id, image in enumerate(images, 1):
        starts = image.boxes[:, :2]
        extents = image.boxes[:, 2:] - starts
        rows = zip(
            image.categories.tolist(),
            starts.tolist(),
            extents.round(DECIMALS).tolist(),
            image.crowds.tolist(),
        )
        for category, (x, y), (w, h), crowd in rows:
            yield {
                "id": next(annotation_ids),
                "image_id": image_id,
                "category_id": category,
                "bbox": [x, y, w, h],
                "area": round(w * h, DECIMALS),
                "iscrowd": int(crowd),
            }
