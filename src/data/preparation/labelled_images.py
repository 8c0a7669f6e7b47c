"""Labelled images between formats: what a reader of YOLO or Pascal VOC gives, and what is written as COCO."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ...core.errors import DataError
from ...core.fault_lists import count_faults, listed
from ...runtime.files import write_atomically
from ...runtime.own_files import write_report

DECIMALS = 3
"""Of a pixel, in what is written."""


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
    """What the file names are relative to."""
    categories: dict[int, str]
    """Names by id."""
    parts: dict[str, list[LabelledImage]]
    """"train", and "val" and "test" if there are any."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was changed or dropped, and how often."""


SHOWN = 5
"""Faults of a kind that a message lists."""


class Fault(NamedTuple):
    """Something that cannot be converted."""

    kind: str
    """The same words for all faults of a kind, such as "coordinates far outside 0 to 1"."""
    where: str
    """A file, with its line."""
    what: str


class Faults:
    """Faults of label files, gathered until all have been read."""

    def __init__(self, source: Path) -> None:
        """Begin without any."""
        self.source = source
        self.found: list[Fault] = []

    def add(self, kind: str, where: str, what: str) -> None:
        """Add one."""
        self.found.append(Fault(kind, where, what))

    def raise_if_any(self) -> None:
        """Raise `ConversionError` if there are any: how many of each kind, and the first of it."""
        if self.found:
            raise ConversionError(self.source, self.found)


class ConversionError(DataError):
    """Label files have faults, and nothing was written."""

    def __init__(self, source: Path, faults: Sequence[Fault]) -> None:
        """Describe them by kind; all stand in `faults`."""
        self.source = source
        self.faults = list(faults)
        kinds: dict[str, list[str]] = {}
        for fault in faults:
            kinds.setdefault(fault.kind, []).append(f"{fault.where}: {fault.what}")
        parts = [
            f"{kind} ({len(own)}): {listed(own, '; ', shown=SHOWN, before_more='; ')}"
            for kind, own in sorted(kinds.items(), key=lambda item: -len(item[1]))
        ]
        number = count_faults(len(faults))
        super().__init__(
            f"{source} has {number}, nothing was written: {'. '.join(parts)}. --report FILE writes all of them"
        )

    def write(self, path: Path) -> None:
        """Write all faults as JSON."""
        faults = [fault._asdict() for fault in self.faults]
        content = {"source": str(self.source), "num_faults": len(faults), "faults": faults}
        write_report(path, content)


class Account(NamedTuple):
    """What is noticed while label files are read."""

    faults: Faults
    notes: Counter[str]
    """What was changed or dropped, and how often."""
    drop_boxes: bool = False
    """Leave out boxes that cannot be used, in place of a fault."""


UNUSABLE = "boxes without area or outside their image"


def boxes_inside(
    corners: np.ndarray, size: tuple[int, int], places: Sequence[str], account: Account
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to their image.

    Args:
        corners: `[T, 4]`, xyxy in pixels; reversed corners are swapped.
        size: (width, height) of the image in pixels.
        places: names each box in messages.
        account: gets what is changed, and boxes that cannot be used: as faults, or as notes if they may be dropped.

    Returns:
        The boxes `[T, 4]`, rounded as they are written, and which of them `[T]` can be used.
    """
    ordered = np.concatenate([corners.reshape(-1, 2, 2).min(1), corners.reshape(-1, 2, 2).max(1)], 1)
    account.notes["boxes with reversed corners, swapped"] += int((ordered != corners).any(1).sum())
    inside = np.clip(ordered, 0, np.tile(size, 2)).round(DECIMALS)
    kept = (inside[:, 2:] > inside[:, :2]).all(1)
    beyond = kept & (abs(inside - ordered) > 0.5).any(1)
    account.notes["boxes reaching beyond their image, clipped"] += int(beyond.sum())
    for row in np.flatnonzero(~kept).tolist():
        if account.drop_boxes:
            account.notes[f"{UNUSABLE}, dropped"] += 1
        else:
            shown = ", ".join(f"{value:g}" for value in corners[row])
            account.faults.add(
                UNUSABLE,
                places[row],
                f"corners {shown} in {size[0]} x {size[1]} pixels; --drop-boxes leaves it out",
            )
    return inside, kept


def write_coco_parts(data: LabelledImages, output: Path) -> Iterator[str]:
    """Write `train.json`, `val.json` ... into a folder; yield a line for each. Images stay where they are."""
    for part, images in data.parts.items():
        write_atomically(output / f"{part}.json", partial(_write, images=images, categories=data.categories))
        empty = sum(not len(image.boxes) for image in images)
        yield f"{output / f'{part}.json'}: {len(images)} images ({empty} without objects), {sum(len(image.boxes) for image in images)} boxes"


def _write(file: BinaryIO, images: Sequence[LabelledImage], categories: dict[int, str]) -> None:
    file.write(b'{"images": [')
    for number, image in enumerate(images):
        record = {
            "id": number + 1,
            "file_name": image.file_name,
            "width": image.size[0],
            "height": image.size[1],
        }
        file.write((b",\n" if number else b"\n") + json.dumps(record).encode())
    file.write(b'\n],\n"annotations": [')
    count = 0
    for number, image in enumerate(images):
        sizes = (image.boxes[:, 2:] - image.boxes[:, :2]).round(DECIMALS)
        for category, (x, y, _, _), (w, h), crowd in zip(
            image.categories.tolist(), image.boxes.tolist(), sizes.tolist(), image.crowds.tolist()
        ):
            count += 1
            record = {
                "id": count,
                "image_id": number + 1,
                "category_id": category,
                "bbox": [x, y, w, h],
                "area": round(w * h, DECIMALS),
                "iscrowd": int(crowd),
            }
            file.write((b",\n" if count > 1 else b"\n") + json.dumps(record).encode())
    file.write(
        b'\n],\n"categories": '
        + json.dumps([{"id": i, "name": name} for i, name in sorted(categories.items())]).encode()
        + b"}\n"
    )
