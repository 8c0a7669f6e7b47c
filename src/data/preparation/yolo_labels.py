"""Label files of YOLO: where the labels of an image are, and what their lines contain."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...core.counts import counted
from ...core.paths import read_text
from ...runtime.limits import is_system_limit
from ..dataset.decoding import IMAGE_SUFFIXES
from .labelled_images import Account

MAX_OVERSHOOT = 0.5
"""Coordinates farther outside of 0 to 1 are in another unit; coordinates within this limit are clipped."""


def label_path(image: str) -> str:
    """Return the path of the labels of an image.

    The last folder `images` becomes `labels`, and the suffix becomes `.txt`.
    """
    *folders, name = image.split("/")
    for at in reversed(range(len(folders))):
        if folders[at] == "images":
            folders[at] = "labels"
            break
    stem, _ = os.path.splitext("/".join([*folders, name]))
    return f"{stem}.txt"


def existing_label(label_root: Path, image: str) -> str:
    """Return the label file of an image.

    The suffixes `.jpg.txt` and `.TXT` are used if the usual file is missing.
    """
    usual = label_path(image)
    stem = usual.removesuffix(".txt")
    suffix = os.path.splitext(image)[1]
    for name in (usual, f"{stem}{suffix}.txt", f"{stem}.TXT"):
        if os.path.lexists(label_root / name):
            return name
    return usual


def find_label_root(root: Path, names: Sequence[str]) -> Path:
    """Return the folder that label paths are relative to: the root, or its counterpart in `labels`."""
    folders = root.as_posix()
    for name in names:
        if "/images/" in f"/{name}":
            return root
    before, images, after = f"{folders}/".rpartition("/images/")
    if not images:
        return root
    sibling = Path(f"{before}/labels/{after}")
    return sibling if sibling.is_dir() else root


def label_stem(name: str) -> str:
    """Return the name of a label file without its suffix and the suffix of its image (`a.jpg.txt`)."""
    name_of_image = os.path.splitext(name)[0]
    stem, suffix = os.path.splitext(name_of_image)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name_of_image


def has_labels(path: Path) -> bool:
    """Return whether the first line of a text file is a label.

    Label folders can contain other text files, such as classes.txt.
    """
    try:
        first = read_text(path, errors="replace").split("\n", 1)[0]
    except OSError:
        return False
    try:
        numbers = list(map(float, first.split()))
    except ValueError:
        return False
    return len(numbers) >= 5


def read_labels(
    path: Path,
    names: dict[int, str],
    extra: int,
    account: Account,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return classes `[T]`, boxes `[T, 4]`, cxcywh in 0..1, and the place of each."""
    try:
        lines = read_text(path, errors="replace").splitlines()
    except FileNotFoundError:
        account.notes[
            "images without a label file, taken as without objects"
        ] += 1
        lines = []
    except OSError as error:
        if is_system_limit(error):
            raise
        reason = error.strerror or str(error)
        account.faults.add("files that cannot be read", str(path), reason)
        lines = []
    classes = []
    boxes = []
    places = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        label = _read_line(line.split(), names, extra)
        if isinstance(label, _BadLine):
            account.faults.add(label.kind, place, label.what)
            continue
        classes.append(label.number)
        boxes.append(label.box)
        places.append(place)
    return (
        np.array(classes, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        places,
    )


class _Label(NamedTuple):
    number: int
    box: list[float]
    """cxcywh, relative to the image."""


class _BadLine(NamedTuple):
    kind: str
    what: str


def _read_line(
    words: list[str],
    names: dict[int, str],
    extra: int,
) -> _Label | _BadLine:
    """Return the label of a line, or a description of its fault."""
    try:
        number, *values = map(float, words)
    except ValueError:
        text = f"{' '.join(words)[:80]!r}, expected numbers"
        return _BadLine("lines that are not numbers", text)
    if not number.is_integer() or int(number) not in names:
        return _BadLine(
            "classes without a name",
            f"class {words[0][:20]} is not among the {counted(len(names), 'name')} "
            f"(numbers {min(names)} to {max(names)})",
        )
    is_box = len(values) in (4, 4 + extra)
    if not is_box and (len(values) < 6 or len(values) % 2):
        return _BadLine(
            "lines with a wrong number of columns",
            f"{len(words)} columns, expected 5 (class cx cy w h) or a class and three or more points",
        )
    if is_box:
        values = values[:4]
    for word, value in zip(words[1:], values):
        if not -MAX_OVERSHOOT <= value <= 1 + MAX_OVERSHOOT:  # True for NaN
            return _BadLine(
                "coordinates far outside 0 to 1",
                f"coordinate {word[:20]}, expected fractions of the image from 0 to 1 (pixels?)",
            )
    if not is_box:
        values = _box_around(values)
    return _Label(int(number), values)


def _box_around(polygon: list[float]) -> list[float]:
    """Return the bounding box, cxcywh, of a polygon x1, y1, x2, y2, ..."""
    points = np.reshape(polygon, (-1, 2))
    low = points.min(0)
    high = points.max(0)
    return np.concatenate([(low + high) / 2, high - low]).tolist()
