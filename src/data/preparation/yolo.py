"""Data sets in the YOLO layout: a `data.yaml`, images, and text files with boxes as fractions of the image.

A label line is `class cx cy w h`, with all values except the class in 0..1, or a polygon `class x1 y1 x2 y2
x3 y3 ...`, of which the bounding box is used. Images without a label file, or with an empty one, have no
objects.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ...core.errors import DataError, first_line
from ...core.paths import did_you_mean_file, read_text, user_path
from ...runtime.limits import is_system_limit
from ...runtime.log import logger
from ..dataset.box_formats import (
    BEYOND_LIMIT,
    LIKELY_FRACTION,
    MIN_SUSPICIOUS_BOXES,
    OVERHANG,
)
from ..dataset.coco_records import unsafe_file_name
from ..dataset.decoding import IMAGE_SUFFIXES, ImageError, image_size
from ..dataset.header_scan import UNKNOWN, sizes_of_files
from ..dataset.image_names import FileIndex, find_image_files, is_image_file
from ..dataset.misplaced_files import find_misplaced
from .labelled_images import (
    Account,
    Faults,
    LabelledImage,
    LabelledImages,
    boxes_inside,
)
from .layouts import describe_layout

MAX_OVERSHOOT = 0.5
"""Coordinates farther outside of 0 to 1 are in another unit; coordinates within this limit are clipped."""

SKELETON = "kpt_shape"


def read_yolo(
    path: Path, *, follow_links: bool = False, drop_boxes: bool = False
) -> LabelledImages:
    """Read the data set that a `data.yaml` describes; class numbers become category ids.

    Args:
        path: the file, or the folder with a `data.yaml`.
        follow_links: open files that are symbolic links out of the data set.
        drop_boxes: drop boxes without area or outside their image, which are faults otherwise.

    Raises:
        DataError: if there are faults; one error lists all of them, by kind.
    """
    path = _yaml_in(path)
    settings = _with_usual_names(_read_yaml(path))
    names = _names(settings, path)
    account = Account(Faults(path), Counter(), drop_boxes)
    root = _root(settings, path, account.notes)
    files = {
        part: _image_files(
            settings[part], root, f"{path}: {part}", account, needed=part == "train"
        )
        for part in ("train", "val", "test")
        if settings.get(part)
    }
    account.faults.raise_if_any()
    if not files.get("train"):
        missing = '"train" is missing: a folder, a text file or a list of them'
        raise DataError(
            f"{path}: {'there is no image behind train' if 'train' in files else missing}"
        )
    skeleton = settings.get(SKELETON)
    extra = (
        math.prod(map(int, skeleton))
        if isinstance(skeleton, list) and _all_digits(skeleton)
        else 0
    )
    parts: dict[str, list[LabelledImage]] = {}
    numbers: list[np.ndarray] = []
    for part, names_of_part in files.items():
        if names_of_part:
            parts[part] = _read_part(
                root, names_of_part, names, extra, account, follow_links, numbers
            )
    _look_for_corners(np.concatenate(numbers), path, account)
    _note_labels_without_image(root, files, account)
    account.faults.raise_if_any()
    if not any(len(image.boxes) for image in parts["train"]):
        first = _label_root(root, files["train"]) / label_path(files["train"][0])
        raise DataError(
            f"{path}: no training image has a box; labels of {root / files['train'][0]} would be in {first}"
        )
    return LabelledImages(root, names, parts, account.notes)


def _with_usual_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with `val` where a file calls it `valid` or `validation`."""
    for name in ("valid", "validation"):
        if name in settings and "val" not in settings:
            settings = {**settings, "val": settings[name]}
    return settings


def _look_for_corners(numbers: np.ndarray, path: Path, account: Account) -> None:
    """Add a fault if boxes are corners: many reach out of their image, and nearly all fit as x1, y1, x2,
    y2.
    """
    if not len(numbers):
        return
    beyond = (
        (np.abs(numbers[:, :2] - 0.5) + numbers[:, 2:] / 2 > 0.5 + OVERHANG)
        .any(1)
        .sum()
    )
    fits = ((numbers[:, 2:] > numbers[:, :2]).all(1) & (numbers <= 1.01).all(1)).mean()
    if (
        beyond >= max(MIN_SUSPICIOUS_BOXES, BEYOND_LIMIT * len(numbers))
        and fits >= LIKELY_FRACTION
    ):
        text = (
            f"{beyond} of {len(numbers)} boxes reach out of their image, and nearly all would fit "
            "as x1 y1 x2 y2; "
            "YOLO has cx cy w h"
        )
        account.faults.add("boxes in another format", str(path), text)


def _note_labels_without_image(
    root: Path, files: dict[str, list[str]], account: Account
) -> None:
    """Add label files without an image in any part: their boxes would be lost."""
    images = [name for names in files.values() for name in names]
    if not images:
        return
    label_root = _label_root(root, images)
    used = {_stem(label_path(name)) for name in images}
    folders = {
        os.path.dirname(label_path(name)): os.path.dirname(name) for name in images
    }
    for folder, image_folder in sorted(folders.items()):
        there = {
            os.path.splitext(name)[0]
            for name in os.listdir(root / image_folder)
            if is_image_file(name)
        }
        for path in sorted((label_root / folder).glob("*")):
            name = f"{folder}/{path.name}" if folder else path.name
            if (
                path.suffix.lower() != ".txt"
                or _stem(name) in used
                or not _has_labels(path)
            ):
                continue
            if os.path.basename(_stem(name)) in there:
                account.notes["labels of images that no list names, left out"] += 1
                continue
            if account.drop_boxes:
                account.notes["label files without an image, left out"] += 1
            else:
                text = "holds labels, but there is no image of this name; --drop-boxes leaves it out"
                account.faults.add("label files without an image", str(path), text)


def _stem(name: str) -> str:
    """Return the name of a label file without its suffix and the suffix of its image (`a.jpg.txt`)."""
    stem = os.path.splitext(name)[0]
    return (
        os.path.splitext(stem)[0]
        if os.path.splitext(stem)[1].lower() in IMAGE_SUFFIXES
        else stem
    )


def _has_labels(path: Path) -> bool:
    """Return whether the first line of a text file is a label; other files, such as classes.txt, can be
    present.
    """
    try:
        words = read_text(path, errors="replace").split("\n", 1)[0].split()
    except OSError:
        return False
    try:
        return len([float(word) for word in words]) >= 5
    except ValueError:
        return False


def _read_part(
    root: Path,
    images: list[str],
    names: dict[int, str],
    extra: int,
    account: Account,
    follow_links: bool,
    numbers: list[np.ndarray],
) -> list[LabelledImage]:
    """Read the images of a part with their labels; the unchanged numbers of their boxes are added to
    `numbers`.
    """
    label_root = _label_root(root, images)
    labels = [_existing_label(label_root, name) for name in images]
    usable = _usable(root, images, label_root, labels, account.faults, follow_links)
    sizes = _upright_sizes([root / images[index] for index in usable], account.faults)
    result = []
    for index, size in zip(usable, sizes):
        classes, boxes, places = _read_labels(
            label_root / labels[index], names, extra, account
        )
        numbers.append(boxes)
        if size is None:
            continue
        corners = np.concatenate(
            [boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1
        )
        inside, kept = boxes_inside(corners * np.tile(size, 2), size, places, account)
        crowds = np.zeros(int(kept.sum()), bool)
        result.append(
            LabelledImage(images[index], size, classes[kept], inside[kept], crowds)
        )
    return result


def _upright_sizes(
    paths: Sequence[Path], faults: Faults
) -> list[tuple[int, int] | None]:
    """Return (width, height) of each file as displayed; None, and a fault, for a file that is not an
    image.
    """
    unknown = np.full((len(paths), 2), UNKNOWN, np.int64)
    sizes: list[tuple[int, int] | None] = []
    for path, (width, height) in zip(
        paths, sizes_of_files([str(path) for path in paths], unknown).tolist()
    ):
        try:
            sizes.append((width, height) if width != UNKNOWN else image_size(path)[1])
        except ImageError as error:
            sizes.append(None)
            faults.add(
                "images that cannot be read",
                str(path),
                str(error).removeprefix(f"image {path} "),
            )
    return sizes


def label_path(image: str) -> str:
    """Return the path of the labels of an image: the last folder `images` becomes `labels`, the suffix
    `.txt`.
    """
    folders = image.split("/")
    for at in range(len(folders) - 2, -1, -1):
        if folders[at] == "images":
            folders[at] = "labels"
            break
    return os.path.splitext("/".join(folders))[0] + ".txt"


def _existing_label(label_root: Path, image: str) -> str:
    """Return the label file of an image; the suffixes `.jpg.txt` and `.TXT` are used if the usual file is
    missing.
    """
    usual = label_path(image)
    stem = usual.removesuffix(".txt")
    suffix = os.path.splitext(image)[1]
    others = (f"{stem}{suffix}.txt", f"{stem}.TXT")
    if os.path.lexists(label_root / usual):
        return usual
    return next((name for name in others if os.path.lexists(label_root / name)), usual)


def _yaml_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.yaml")) + sorted(path.glob("*.yml"))
    if path / "data.yaml" in found:
        return path / "data.yaml"
    if len(found) > 1:
        raise DataError(
            f"{path} has {len(found)} YAML files and no data.yaml; name the one that describes the data"
        )
    if not found:
        raise DataError(f"{path} has no data.yaml{describe_layout(path)}")
    return found[0]


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a `data.yaml` with all values as text: a class can be called yes, on or 012."""
    try:
        settings = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}{did_you_mean_file(path)}"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start}): save it in this encoding"
        ) from None
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataError(
            f"{path} is not valid YAML: {error.problem or error.context}{place}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid YAML: {first_line(error)}") from None
    if not isinstance(settings, dict):
        raise DataError(
            f"{path} holds a {type(settings).__name__}, expected train, val and names"
        )
    return {
        key: value
        for key, value in settings.items()
        if value not in ("", "~", "null", "Null", "NULL")
    }


def _names(settings: dict[str, Any], path: Path) -> dict[int, str]:
    names = settings.get("names")
    table = (
        {str(i): name for i, name in enumerate(names)}
        if isinstance(names, list)
        else names
    )
    if (
        not isinstance(table, dict)
        or not table
        or not _all_digits(table)
        or not all(isinstance(name, str) and name.strip() for name in table.values())
    ):
        raise DataError(
            f"{path}: names is {reprlib.repr(names)}, expected a list of class names, or names by "
            "class number"
        )
    count = settings.get("nc", str(len(table)))
    if isinstance(names, list) and count != str(len(names)):
        raise DataError(f"{path}: nc is {count}, but there are {len(names)} names")
    if repeated := [
        name for name, times in Counter(table.values()).items() if times > 1
    ]:
        logger.warning(
            "%s: names has %s more than once; they stay classes of their own",
            path,
            ", ".join(repeated[:5]),
        )
    return {
        int(number): name
        for number, name in sorted(table.items(), key=lambda item: int(item[0]))
    }


def _all_digits(texts: Iterable[Any]) -> bool:
    return all(
        isinstance(text, str) and text.isascii() and text.isdigit() for text in texts
    )


def _root(settings: dict[str, Any], path: Path, notes: Counter[str]) -> Path:
    """Return the folder of the data set: `path`, relative to the file, or the folder of the file.

    A `path` that does not exist, for example because the file is from another machine, is ignored with a note
    if the training images are found next to the file.
    """
    given = settings.get("path")
    if given is None:
        return path.parent.resolve()
    if not isinstance(given, str):
        raise DataError(
            f"{path}: path is {given!r}, expected the folder of the data set"
        )
    for folder in (path.parent / given, user_path(given)):
        if folder.is_dir():
            return folder.resolve()
    train = settings.get("train")
    entries = train if isinstance(train, list) else [train]
    if all(
        isinstance(entry, str) and (path.parent / entry).exists() for entry in entries
    ):
        notes[
            f"{path}: path is {given}, which does not exist; its own folder is used instead"
        ] += 1
        return path.parent.resolve()
    raise DataError(
        f"{path}: path is {given}, which is not a folder (looked from {path.parent} and "
        f"{Path.cwd()}); remove the line "
        "if the images lie beside the file"
    )


def _image_files(
    value: Any, root: Path, where: str, account: Account, *, needed: bool
) -> list[str]:
    """Return the files of a part, relative to the root.

    A part that is listed but missing, like the test part of many exports, is skipped with a note unless it is
    needed.
    """
    found: list[str] = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str) or not entry or "\0" in entry:
            account.faults.add(
                "entries of data.yaml that are not paths",
                where,
                f"{reprlib.repr(entry)}, expected a folder, a text file or a list of them",
            )
            continue
        entry = entry.replace("\\", "/")
        place = root / user_path(entry)
        if entry.startswith("../") and not place.exists():
            place = root / entry.removeprefix(
                "../"
            )  # exports of Roboflow: beside the file, whatever they say
        name = _inside(place, root)
        if not place.exists():
            if needed:
                hint = did_you_mean_file(place)
                account.faults.add(
                    "paths that do not exist", where, f"{place} does not exist{hint}"
                )
            else:
                account.notes[
                    f"{where} is listed but does not exist, left out ({entry})"
                ] += 1
        elif name is None:
            account.faults.add(
                "paths outside the data set",
                where,
                f"{entry} is outside {root}; set path to a folder that holds all of the data set",
            )
        elif place.is_dir():
            found += _listing(root, name, account.notes)
        else:
            found += _listed_files(place, root, account.faults)
    return sorted(dict.fromkeys(found))


def _listing(root: Path, folder: str, notes: Counter[str]) -> Iterator[str]:
    files = find_image_files(root / folder)
    for suffix, count in files.others.items():
        if suffix != ".txt":  # labels lie beside images in some data sets
            kind = (
                f"files {suffix or 'without a suffix'}"
                if suffix[:1] in ("", ".")
                else suffix
            )
            notes[f"{kind} among the images, which are not read"] += count
    yield from (name if folder == "." else f"{folder}/{name}" for name in files.images)


def _listed_files(listing: Path, root: Path, faults: Faults) -> Iterator[str]:
    """Yield the files listed in a text file, one per line.

    Paths are relative to the root or, with `./`, to the text file; absolute paths must be inside the root.
    """
    try:
        lines = read_text(listing, errors="surrogateescape").splitlines()
    except OSError as error:
        faults.add(
            "files that cannot be read", str(listing), error.strerror or str(error)
        )
        return
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line:
            continue
        line = line.replace("\\", "/")
        place = (
            listing.parent / line if line.startswith("./") else root / user_path(line)
        )
        name = _inside(place, root)
        if name is None:
            text = f"{line[:80]} is outside {root}, the folder of the data set"
            faults.add("paths outside the data set", f"{listing} line {number}", text)
        elif reason := unsafe_file_name(name):
            faults.add(
                "file names that cannot be used",
                f"{listing} line {number}",
                f"{line[:80]!r}, {reason}",
            )
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
    """Return the images that exist inside their folders with their labels; the others are added as faults."""
    missing, leaving = find_misplaced(root, names)
    files = FileIndex(root)
    bad = {}
    for index in missing:
        similar = files.similar_to(names[index])
        text = "is missing" + (f", did you mean {similar!r}?" if similar else "")
        bad[index] = ("images that are missing", text)
    for where, found in (
        (root, leaving),
        (label_root, find_misplaced(label_root, labels).leaving),
    ):
        for index, target in ({} if follow_links else found).items():
            text = f"or its labels lead out of {where} to {target}; give --follow-links if you trust it"
            bad.setdefault(index, ("images or labels outside the data set", text))
    for index, name in enumerate(names):
        if reason := unsafe_file_name(name):
            bad[index] = ("file names that cannot be used", reason)
    for index, (kind, reason) in sorted(bad.items()):
        faults.add(kind, str(root / names[index]), reason)
    return [index for index in range(len(names)) if index not in bad]


def _label_root(root: Path, names: Sequence[str]) -> Path:
    """Return the folder that label paths are relative to: the root, or its counterpart in `labels`."""
    folders = list(root.parts)
    if "images" in folders and not any(
        "images" in name.split("/")[:-1] for name in names
    ):
        at = len(folders) - 1 - folders[::-1].index("images")
        sibling = Path(*folders[:at], "labels", *folders[at + 1 :])
        return sibling if sibling.is_dir() else root
    return root


def _read_labels(
    path: Path, names: dict[int, str], extra: int, account: Account
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return classes `[T]`, boxes `[T, 4]`, cxcywh in 0..1, and the place of each."""
    try:
        lines = read_text(path, errors="replace").splitlines()
    except FileNotFoundError:
        account.notes["images without a label file, taken as without objects"] += 1
        lines = []
    except OSError as error:
        if is_system_limit(error):
            raise
        account.faults.add(
            "files that cannot be read", str(path), error.strerror or str(error)
        )
        lines = []
    classes = []
    boxes = []
    places = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        label = _read_line(line.split(), names, extra)
        if isinstance(label, _BadLine):
            account.faults.add(label.kind, f"{path} line {number}", label.what)
            continue
        classes.append(label.number)
        boxes.append(label.box)
        places.append(f"{path} line {number}")
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
    words: list[str], names: dict[int, str], extra: int
) -> _Label | _BadLine:
    """Return the label of a line, or a description of its fault."""
    try:
        number, *values = map(float, words)
    except ValueError:
        return _BadLine(
            "lines that are not numbers", f"{' '.join(words)[:80]!r}, expected numbers"
        )
    if not number.is_integer() or int(number) not in names:
        return _BadLine(
            "classes without a name",
            f"class {words[0][:20]} is not among the {len(names)} names (numbers {min(names)} to "
            f"{max(names)})",
        )
    is_box = len(values) in (4, 4 + extra)
    if not is_box and (len(values) < 6 or len(values) % 2):
        return _BadLine(
            "lines with a wrong number of columns",
            f"{len(words)} columns, expected 5 (class cx cy w h) or a class and three or more points",
        )
    values = values[:4] if is_box else values
    if far := [
        word
        for word, value in zip(words[1:], values)
        if not -MAX_OVERSHOOT <= value <= 1 + MAX_OVERSHOOT
    ]:  # NaN is neither
        return _BadLine(
            "coordinates far outside 0 to 1",
            f"coordinate {far[0][:20]}, expected fractions of the image from 0 to 1 (pixels?)",
        )
    if is_box:
        return _Label(int(number), values)
    xs, ys = values[0::2], values[1::2]
    x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    return _Label(int(number), [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
