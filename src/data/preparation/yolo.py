"""Data sets in the YOLO layout: a `data.yaml`, images, and beside them text files with boxes in shares of the image.

A label line is `class cx cy w h`, all but the class in 0..1, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, of which the
bounding box is taken. Images without a label file, or with an empty one, have no objects.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...core.errors import DataError
from ...runtime.limits import is_system_limit
from ..dataset.coco_records import unsafe_file_name
from ..dataset.image_folder import find_misplaced
from ..dataset.images import IMAGE_SUFFIXES
from .image_sizes import upright_sizes
from .labelled_images import Faults, LabelledImage, LabelledImages, boxes_inside, unusable_name

TOLERANCE = 1e-3
"""Coordinates may be as much beyond 0..1 by rounding."""


def read_yolo(path: Path, *, follow_links: bool = False) -> LabelledImages:
    """Read the data set that a `data.yaml` describes; class numbers become category ids.

    Args:
        path: the file, or the folder with a `data.yaml`.
        follow_links: open files that symbolic links carry out of the data set.

    Raises:
        DataError: one error with all faults, each with file and line.
    """
    path = _yaml_in(path)
    settings = _read_yaml(path)
    names = _names(settings, path)
    root = _root(settings, path)
    faults, notes = Faults(path), Counter()
    files = {
        part: _image_files(settings[part], root, f"{path}: {part}", faults)
        for part in ("train", "val", "test")
        if settings.get(part)
    }
    faults.raise_if_any()
    if not files.get("train"):
        raise DataError(
            f"{path}: "
            + (
                "there is no image behind train"
                if "train" in files
                else '"train" is missing: a folder, a text file or a list of them'
            )
        )
    skeletons = settings.get("kpt_shape")
    extra = (
        math.prod(skeletons)
        if isinstance(skeletons, list) and all(isinstance(n, int) for n in skeletons)
        else 0
    )
    parts: dict[str, list[LabelledImage]] = {}
    for part, names_of_part in files.items():
        labels = [label_path(name) for name in names_of_part]
        label_root = _label_root(root, names_of_part)
        usable = _usable(root, names_of_part, label_root, labels, faults, follow_links)
        sizes = iter(upright_sizes([root / names_of_part[i] for i in usable], faults))
        parts[part] = []
        for index in usable:
            name, size = names_of_part[index], next(sizes)
            classes, boxes = _read_labels(label_root / labels[index], names, extra, faults, notes)
            if size is None:
                continue
            corners = np.concatenate(
                [boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1
            ) * np.tile(size, 2)
            inside, kept = boxes_inside(corners, size, notes)
            parts[part].append(
                LabelledImage(name, size, classes[kept], inside[kept], np.zeros(int(kept.sum()), bool))
            )
    faults.raise_if_any()
    if not any(len(image.boxes) for part in parts.values() for image in part):
        first = _label_root(root, files["train"]) / label_path(files["train"][0])
        raise DataError(
            f"{path}: no image has a box; labels of {root / files['train'][0]} would be in {first}"
        )
    return LabelledImages(root, names, parts, notes)


def label_path(image: str) -> str:
    """Return where the labels of an image are: the last folder `images` of its path is `labels`, the suffix `.txt`."""
    folders = image.split("/")
    for at in range(len(folders) - 2, -1, -1):
        if folders[at] == "images":
            folders[at] = "labels"
            break
    return os.path.splitext("/".join(folders))[0] + ".txt"


def _yaml_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.yaml")) + sorted(path.glob("*.yml"))
    if path / "data.yaml" in found:
        return path / "data.yaml"
    if len(found) != 1:
        raise DataError(
            f"{path} has {len(found)} YAML files and no data.yaml; name the one that describes the data"
        )
    return found[0]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid YAML: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from None
    if not isinstance(settings, dict):
        raise DataError(f"{path} holds a {type(settings).__name__}, expected train, val and names")
    return settings


def _names(settings: dict[str, Any], path: Path) -> dict[int, str]:
    names = settings.get("names")
    table = dict(enumerate(names)) if isinstance(names, list) else names
    if (
        not isinstance(table, dict)
        or not table
        or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in table)
    ):
        raise DataError(
            f"{path}: names is {str(names)[:80]}, expected a list of class names, or names by class number"
        )
    count = settings.get("nc", len(table))
    if isinstance(names, list) and count != len(names):
        raise DataError(f"{path}: nc is {count}, but there are {len(names)} names")
    return {i: str(name) for i, name in sorted(table.items())}


def _root(settings: dict[str, Any], path: Path) -> Path:
    """Return the folder of the data set: `path` of the file, relative to it, or where the file is."""
    given = settings.get("path")
    if given is None:
        return path.parent.resolve()
    if not isinstance(given, str):
        raise DataError(f"{path}: path is {given!r}, expected the folder of the data set")
    for folder in (path.parent / given, Path(given)):
        if folder.is_dir():
            return folder.resolve()
    raise DataError(
        f"{path}: path is {given}, which is no folder (looked from {path.parent} and {Path.cwd()})"
    )


def _image_files(value: Any, root: Path, where: str, faults: Faults) -> list[str]:
    """Return the files of a part, relative to the root."""
    found: list[str] = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str) or not entry or "\0" in entry:
            faults.add(where, f"{str(entry)[:80]!r}, expected a folder, a text file or a list of them")
            continue
        place = root / entry
        if (
            entry.startswith("../") and not place.exists()
        ):  # exports of Roboflow: beside the file, whatever they say
            place = root / entry.removeprefix("../")
        if place.is_dir():
            folder = _inside(place, root)
            if folder is None:
                faults.add(
                    where, f"{entry} is outside {root}; set path to a folder that holds all of the data set"
                )
                continue
            found += _listing(root, folder)
        elif place.is_file() and _inside(place, root) is None:
            faults.add(
                where, f"{entry} is outside {root}; set path to a folder that holds all of the data set"
            )
        elif place.is_file():
            found += _listed_files(place, root, faults)
        else:
            faults.add(where, f"{place} does not exist")
    return sorted(dict.fromkeys(found))


def _listing(root: Path, folder: str) -> Iterator[str]:
    for base, folders, names in os.walk(root / folder):
        folders.sort()
        prefix = os.path.relpath(base, root).replace(os.sep, "/")
        yield from (
            name if prefix == "." else f"{prefix}/{name}"
            for name in sorted(names)
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        )


def _listed_files(listing: Path, root: Path, faults: Faults) -> Iterator[str]:
    """Yield the files that a text file lists, a line each: relative to the root or, with `./`, to the text file; or absolute within the root."""
    try:
        lines = listing.read_text("utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        faults.add(str(listing), f"cannot be read: {error.strerror or error}")
        return
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line:
            continue
        place = listing.parent / line if line.startswith("./") else root / line
        name = _inside(place, root)
        if name is None:
            faults.add(
                f"{listing} line {number}", f"{line[:80]} is outside {root}, the folder of the data set"
            )
        elif reason := unsafe_file_name(name):
            faults.add(f"{listing} line {number}", f"{line[:80]!r}, {reason}")
        else:
            yield name


def _inside(place: Path, root: Path) -> str | None:
    """Return a path relative to the root, without following links; None if it is not below."""
    relative = os.path.relpath(os.path.normpath(place), root).replace(os.sep, "/")
    return None if relative == ".." or relative.startswith("../") else relative


def _usable(
    root: Path,
    names: Sequence[str],
    label_root: Path,
    labels: Sequence[str],
    faults: Faults,
    follow_links: bool,
) -> list[int]:
    """Return which images are there, and within their folders with their labels; the others are faults."""
    missing, leaving = find_misplaced(root, names)
    bad = {index: "is missing" for index in missing}
    for where, found in ((root, leaving), (label_root, find_misplaced(label_root, labels).leaving)):
        for index, target in ({} if follow_links else found).items():
            bad.setdefault(
                index, f"or its labels lead out of {where} to {target}; give --follow-links if you trust it"
            )
    bad |= {index: reason for index, name in enumerate(names) if (reason := unusable_name(name))}
    for index, reason in sorted(bad.items()):
        faults.add(str(root / names[index]), reason)
    return [index for index in range(len(names)) if index not in bad]


def _label_root(root: Path, names: Sequence[str]) -> Path:
    """Return what paths of labels are relative to: the root, or if that lies in a folder `images` itself, its twin in `labels`."""
    folders = list(root.parts)
    if "images" in folders and not any("images" in name.split("/")[:-1] for name in names):
        at = len(folders) - 1 - folders[::-1].index("images")
        twin = Path(*folders[:at], "labels", *folders[at + 1 :])
        return twin if twin.is_dir() else root
    return root


def _read_labels(
    path: Path, names: dict[int, str], extra: int, faults: Faults, notes: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return classes `[T]` and boxes `[T, 4]`, cxcywh in 0..1."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        notes["images without a label file, taken as without objects"] += 1
        lines = []
    except OSError as error:
        if is_system_limit(error):
            raise
        faults.add(str(path), f"cannot be read: {error.strerror or error}")
        lines = []
    classes, boxes = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        box = _read_line(line.split(), names, extra)
        if isinstance(box, str):
            faults.add(f"{path} line {number}", box)
        else:
            classes.append(box[0])
            boxes.append(box[1])
    return np.array(classes, np.int64), np.array(boxes, np.float64).reshape(-1, 4)


def _read_line(words: list[str], names: dict[int, str], extra: int) -> tuple[int, list[float]] | str:
    """Return class and box (cxcywh) of a label line, or what is wrong with it."""
    try:
        number, *values = map(float, words)
    except ValueError:
        return f"{' '.join(words)[:80]!r}, expected numbers"
    if not number.is_integer() or int(number) not in names:
        return f"class {words[0][:20]} is not among the {len(names)} names (numbers {min(names)} to {max(names)})"
    is_box = len(values) in (4, 4 + extra)
    if not is_box and (len(values) < 6 or len(values) % 2):
        return f"{len(words)} columns, expected 5 (class cx cy w h) or a class and three or more points"
    values = values[:4] if is_box else values
    if bad := [
        word for word, value in zip(words[1:], values) if not -TOLERANCE <= value <= 1 + TOLERANCE
    ]:  # NaN is not within either
        return f"coordinate {bad[0][:20]}, expected 0 to 1"
    if is_box:
        return int(number), values
    xs, ys = values[0::2], values[1::2]
    return int(number), [
        (min(xs) + max(xs)) / 2,
        (min(ys) + max(ys)) / 2,
        max(xs) - min(xs),
        max(ys) - min(ys),
    ]
