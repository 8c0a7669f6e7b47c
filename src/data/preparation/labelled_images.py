"""Labelled images between formats: what a reader of YOLO or Pascal VOC gives, and what is written as COCO."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ...core.errors import DataError
from ...runtime.files import write_atomically
from ..dataset.coco_records import unsafe_file_name
from ..dataset.findings import listed

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
    """What was dropped or clipped, and how often."""


class Faults:
    """Faults of label files, gathered until all have been read."""

    def __init__(self, source: Path) -> None:
        """Begin without any."""
        self.source, self.found = source, []

    def add(self, where: str, what: str) -> None:
        """Add one."""
        self.found.append(f"{where}: {what}")

    def raise_if_any(self) -> None:
        """Raise `DataError` with the first faults, if there are any."""
        if self.found:
            number = "1 fault" if len(self.found) == 1 else f"{len(self.found)} faults"
            raise DataError(f"{self.source} has {number}, nothing was written: {listed(self.found, '; ')}")


def unusable_name(name: str) -> str | None:
    """Tell why a file name cannot stand in a COCO file, or None."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "which is not UTF-8; rename it"
    return unsafe_file_name(name)


def boxes_inside(
    corners: np.ndarray, size: tuple[int, int], notes: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes `[T, 4]`, xyxy in pixels, to their image; return them rounded as they are written, and which of them `[T]` have an area."""
    inside = np.clip(corners, 0, np.tile(size, 2)).round(DECIMALS)
    notes["boxes reaching beyond their image, clipped"] += int((abs(inside - corners) > 0.5).any(1).sum())
    kept = (inside[:, 2:] > inside[:, :2]).all(1)
    notes["boxes without area, dropped"] += int((~kept).sum())
    return inside, kept


def write_coco_parts(data: LabelledImages, output: Path) -> Iterator[str]:
    """Write `train.json`, `val.json` ... into a folder; yield a line for each. Images stay where they are."""
    for part, images in data.parts.items():
        write_atomically(
            output / f"{part}.json", lambda file, images=images: _write(file, images, data.categories)
        )
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
