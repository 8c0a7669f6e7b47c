"""Labelled images during a conversion: the result of reading YOLO or Pascal VOC, and its output as COCO."""

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
    """What was changed or dropped, and how often."""


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

    def add(self, kind: str, where: str, what: str) -> None:
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
            kinds.setdefault(fault.kind, []).append(f"{fault.where}: {fault.what}")
        parts = [
            f"{kind} ({len(own)}): {listed(own, '; ', shown=SHOWN, before_more='; ')}"
            for kind, own in sorted(kinds.items(), key=lambda item: -len(item[1]))
        ]
        number = count_faults(len(faults))
        super().__init__(
            f"{source} has {number}, nothing was written: {'. '.join(parts)}. --report FILE "
            "writes all of them"
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
    """What was changed or dropped, and how often."""
    drop_boxes: bool = False
    """Drop boxes that cannot be used, instead of adding a fault."""


UNUSABLE = "boxes without area or outside their image"


def boxes_inside(
    corners: np.ndarray, size: tuple[int, int], places: Sequence[str], account: Account
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
    ordered = np.concatenate([points.min(1), points.max(1)], 1)
    account.notes["boxes with reversed corners, swapped"] += int(
        (ordered != corners).any(1).sum()
    )
    inside = np.clip(ordered, 0, np.tile(size, 2)).round(DECIMALS)
    kept = (inside[:, 2:] > inside[:, :2]).all(1)
    beyond = kept & (abs(inside - ordered) > 0.5).any(1)
    account.notes["boxes reaching beyond their image, clipped"] += int(beyond.sum())
    for row in np.flatnonzero(~kept).tolist():
        if account.drop_boxes:
            account.notes[f"{UNUSABLE}, dropped"] += 1
        else:
            shown = ", ".join(f"{value:g}" for value in corners[row])
            what = f"corners {shown} in {size[0]} x {size[1]} pixels; --drop-boxes leaves it out"
            account.faults.add(UNUSABLE, places[row], what)
    return inside, kept


def write_coco_parts(data: LabelledImages, output: Path) -> Iterator[str]:
    """Write `train.json`, `val.json` ... into a folder, and yield a line for each. Images are not copied."""
    for part, images in data.parts.items():
        path = output / f"{part}.json"
        write_atomically(
            path, partial(_write, images=images, categories=data.categories)
        )
        counts = [len(image.boxes) for image in images]
        empty = counts.count(0)
        yield f"{path}: {len(images)} images ({empty} without objects), {sum(counts)} boxes"


def _write(
    file: BinaryIO, images: Sequence[LabelledImage], categories: dict[int, str]
) -> None:
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
            image.categories.tolist(),
            image.boxes.tolist(),
            sizes.tolist(),
            image.crowds.tolist(),
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
        + json.dumps(
            [{"id": i, "name": name} for i, name in sorted(categories.items())]
        ).encode()
        + b"}\n"
    )
