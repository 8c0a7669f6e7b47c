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
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

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
    path: Path,
    *,
    follow_links: bool = False,
    drop_boxes: bool = False,
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
    files: dict[str, list[str]] = {}
    for part in ("train", "val", "test"):
        if settings.get(part):
            where = f"{path}: {part}"
            needed = part == "train"
            files[part] = _image_files(
                settings[part], root, where, account, needed
            )
    account.faults.raise_if_any()
    if "train" not in files:
        raise DataError(
            f'{path}: "train" is missing: a folder, a text file or a list of them'
        )
    if not files["train"]:
        raise DataError(f"{path}: there is no image behind train")
    extra = _extra_columns(settings)
    parts: dict[str, list[LabelledImage]] = {}
    numbers: list[np.ndarray] = []
    for part, names_of_part in files.items():
        if names_of_part:
            parts[part] = _read_part(
                root,
                names_of_part,
                names,
                extra,
                account,
                follow_links,
                numbers,
            )
    _look_for_corners(np.concatenate(numbers), path, account)
    _note_labels_without_image(root, files, account)
    account.faults.raise_if_any()
    if not any(len(image.boxes) for image in parts["train"]):
        first = files["train"][0]
        labels = _label_root(root, files["train"]) / label_path(first)
        raise DataError(
            f"{path}: no training image has a box; labels of {root / first} would be in {labels}"
        )
    return LabelledImages(root, names, parts, account.notes)


def _with_usual_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with `val` where a file calls it `valid` or `validation`."""
    for name in ("valid", "validation"):
        if name in settings and "val" not in settings:
            settings = {**settings, "val": settings[name]}
    return settings


def _extra_columns(settings: dict[str, Any]) -> int:
    """Return the number of columns that keypoints add to a label line."""
    skeleton = settings.get(SKELETON)
    if isinstance(skeleton, list) and _all_digits(skeleton):
        return math.prod(map(int, skeleton))
    return 0


def _look_for_corners(
    numbers: np.ndarray,
    path: Path,
    account: Account,
) -> None:
    """Add a fault if the numbers of boxes are corners.

    The signs are that many boxes reach out of their image, and that nearly all fit as x1, y1, x2, y2.
    """
    count = len(numbers)
    if not count:
        return
    first = numbers[:, :2]
    second = numbers[:, 2:]
    reach = np.abs(first - 0.5) + second / 2  # from the middle of the image
    beyond = (reach > 0.5 + OVERHANG).any(1).sum()
    in_order = (second > first).all(1)
    in_range = (numbers <= 1.01).all(1)
    fits = (in_order & in_range).mean()
    suspicious = max(MIN_SUSPICIOUS_BOXES, BEYOND_LIMIT * count)
    if beyond >= suspicious and fits >= LIKELY_FRACTION:
        text = (
            f"{beyond} of {count} boxes reach out of their image, and nearly all would fit as x1 y1 x2 y2; "
            "YOLO has cx cy w h"
        )
        account.faults.add("boxes in another format", str(path), text)


def _note_labels_without_image(
    root: Path,
    files: dict[str, list[str]],
    account: Account,
) -> None:
    """Add label files without an image in any part: their boxes would be lost."""
    images = list(chain.from_iterable(files.values()))
    label_root = _label_root(root, images)
    used = set()
    folders = {}
    for name in images:
        labels = label_path(name)
        used.add(_stem(labels))
        folders[os.path.dirname(labels)] = os.path.dirname(name)
    for folder, image_folder in sorted(folders.items()):
        present = _stems_of_images(root / image_folder)
        for path in sorted((label_root / folder).glob("*")):
            stem = _stem(path.name)
            is_used = os.path.join(folder, stem) in used
            if (
                path.suffix.lower() != ".txt"
                or is_used
                or not _has_labels(path)
            ):
                continue
            if stem in present:
                account.notes[
                    "labels of images that no list names, left out"
                ] += 1
            elif account.drop_boxes:
                account.notes["label files without an image, left out"] += 1
            else:
                text = "holds labels, but there is no image of this name; --drop-boxes leaves it out"
                account.faults.add(
                    "label files without an image", str(path), text
                )


def _stems_of_images(folder: Path) -> set[str]:
    """Return the names of the images in a folder, without their suffixes."""
    images = filter(is_image_file, os.listdir(folder))
    return {os.path.splitext(name)[0] for name in images}


def _stem(name: str) -> str:
    """Return the name of a label file without its suffix and the suffix of its image (`a.jpg.txt`)."""
    name_of_image = os.path.splitext(name)[0]
    stem, suffix = os.path.splitext(name_of_image)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name_of_image


def _has_labels(path: Path) -> bool:
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


def _read_part(
    root: Path,
    images: list[str],
    names: dict[int, str],
    extra: int,
    account: Account,
    follow_links: bool,
    numbers: list[np.ndarray],
) -> list[LabelledImage]:
    """Read the images of a part with their labels, and add the numbers of their boxes to `numbers`.

    These numbers are cxcywh as in the files.
    """
    label_root = _label_root(root, images)
    labels = [_existing_label(label_root, name) for name in images]
    usable = _usable(
        root, images, label_root, labels, account.faults, follow_links
    )
    paths = [root / images[index] for index in usable]
    sizes = _upright_sizes(paths, account.faults)
    result = []
    for index, size in zip(usable, sizes):
        path = label_root / labels[index]
        classes, boxes, places = _read_labels(path, names, extra, account)
        numbers.append(boxes)
        if size is None:
            continue
        centres = boxes[:, :2]
        halves = boxes[:, 2:] / 2
        corners = np.concatenate([centres - halves, centres + halves], 1)
        corners *= np.tile(size, 2)
        inside, kept = boxes_inside(corners, size, places, account)
        crowds = np.zeros(int(kept.sum()), bool)
        result.append(
            LabelledImage(
                images[index], size, classes[kept], inside[kept], crowds
            )
        )
    return result


def _upright_sizes(
    paths: Sequence[Path], faults: Faults
) -> list[tuple[int, int] | None]:
    """Return (width, height) of each file as displayed.

    For a file that is not an image, the size is None, and a fault is added.
    """
    unknown = np.full((len(paths), 2), UNKNOWN, np.int64)
    found = sizes_of_files(list(map(str, paths)), unknown)
    sizes: list[tuple[int, int] | None] = []
    for path, (width, height) in zip(paths, found.tolist()):
        if width != UNKNOWN:
            sizes.append((width, height))
            continue
        try:
            _, upright = image_size(path)
            sizes.append(upright)
        except ImageError as error:
            sizes.append(None)
            reason = str(error).removeprefix(f"image {path} ")
            faults.add("images that cannot be read", str(path), reason)
    return sizes


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


def _existing_label(label_root: Path, image: str) -> str:
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
        hint = did_you_mean_file(path)
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}{hint}"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start}): save it in this encoding"
        ) from None
    except yaml.MarkedYAMLError as error:
        what = error.problem or error.context
        if error.problem_mark:
            what = f"{what}, line {error.problem_mark.line + 1}"
        raise DataError(f"{path} is not valid YAML: {what}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid YAML: {first_line(error)}"
        ) from None
    if not isinstance(settings, dict):
        raise DataError(
            f"{path} holds a {type(settings).__name__}, expected train, val and names"
        )
    given = {}
    for key, value in settings.items():
        if value not in _NULLS:
            given[key] = value
    return given


_NULLS = ("", "~", "null", "Null", "NULL")
"""Texts that YAML reads as no value."""


def _names(settings: dict[str, Any], path: Path) -> dict[int, str]:
    """Return the class names by number, sorted."""
    names = settings.get("names")
    table = names
    if isinstance(names, list):
        table = {str(number): name for number, name in enumerate(names)}
    if not _is_table_of_names(table):
        raise DataError(
            f"{path}: names is {reprlib.repr(names)}, expected a list of class names, "
            "or names by class number"
        )
    count = settings.get("nc", str(len(table)))
    if isinstance(names, list) and count != str(len(names)):
        raise DataError(
            f"{path}: nc is {count}, but there are {len(names)} names"
        )
    repeated = []
    for name, times in Counter(table.values()).items():
        if times > 1:
            repeated.append(name)
    if repeated:
        logger.warning(
            "%s: names has %s more than once; they stay classes of their own",
            path,
            ", ".join(repeated[:5]),
        )
    by_number = {int(number): name for number, name in table.items()}
    return dict(sorted(by_number.items()))


def _is_table_of_names(value: Any) -> TypeGuard[dict[str, str]]:
    """Return whether a value is a dictionary of names by number, with at least one of them."""
    if not isinstance(value, dict) or not value or not _all_digits(value):
        return False
    return all(
        isinstance(name, str) and name.strip() for name in value.values()
    )


def _all_digits(texts: Iterable[Any]) -> bool:
    return all(map(_is_digits, texts))


def _is_digits(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isdigit()


def _root(
    settings: dict[str, Any],
    path: Path,
    notes: Counter[str],
) -> Path:
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
    train = _as_list(settings.get("train"))
    if all(_exists(entry, path.parent) for entry in train):
        note = f"{path}: path is {given}, which does not exist; its own folder is used instead"
        notes[note] += 1
        return path.parent.resolve()
    raise DataError(
        f"{path}: path is {given}, which is not a folder (looked from {path.parent} and {Path.cwd()}); "
        "remove the line if the images lie beside the file"
    )


def _exists(entry: Any, folder: Path) -> bool:
    return isinstance(entry, str) and (folder / entry).exists()


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _image_files(
    value: Any,
    root: Path,
    where: str,
    account: Account,
    needed: bool,
) -> list[str]:
    """Return the files of a part, relative to the root.

    A part that is listed but missing, like the test part of many exports, is skipped with a note unless it is
    needed.
    """
    found: list[str] = []
    for entry in _as_list(value):
        if not isinstance(entry, str) or not entry or "\0" in entry:
            text = f"{reprlib.repr(entry)}, expected a folder, a text file or a list of them"
            account.faults.add(
                "entries of data.yaml that are not paths", where, text
            )
            continue
        entry = entry.replace("\\", "/")
        place = root / user_path(entry)
        if entry.startswith("../") and not place.exists():
            # exports of Roboflow have the images beside the file, whatever they say
            place = root / entry.removeprefix("../")
        name = _inside(place, root)
        if not place.exists() and needed:
            text = f"{place} does not exist{did_you_mean_file(place)}"
            account.faults.add("paths that do not exist", where, text)
        elif not place.exists():
            note = f"{where} is listed but does not exist, left out ({entry})"
            account.notes[note] += 1
        elif name is None:
            text = f"{entry} is outside {root}; set path to a folder that holds all of the data set"
            account.faults.add("paths outside the data set", where, text)
        elif place.is_dir():
            found += _listing(root, name, account.notes)
        else:
            found += _listed_files(place, root, account.faults)
    return sorted(dict.fromkeys(found))


def _listing(
    root: Path,
    folder: str,
    notes: Counter[str],
) -> Iterator[str]:
    files = find_image_files(root / folder)
    for suffix, count in files.others.items():
        if suffix == ".txt":  # labels lie beside images in some data sets
            continue
        kind = suffix
        if not suffix:
            kind = "files without a suffix"
        elif suffix.startswith("."):
            kind = f"files {suffix}"
        notes[f"{kind} among the images, which are not read"] += count
    for name in files.images:
        yield name if folder == "." else f"{folder}/{name}"


def _listed_files(
    listing: Path,
    root: Path,
    faults: Faults,
) -> Iterator[str]:
    """Yield the files listed in a text file, one per line.

    Paths are relative to the root or, with `./`, to the text file; absolute paths must be inside the root.
    """
    try:
        lines = read_text(listing, errors="surrogateescape").splitlines()
    except OSError as error:
        reason = error.strerror or str(error)
        faults.add("files that cannot be read", str(listing), reason)
        return
    for number, line in enumerate(lines, 1):
        line = line.strip().replace("\\", "/")
        if not line:
            continue
        where = f"{listing} line {number}"
        place = root / user_path(line)
        if line.startswith("./"):
            place = listing.parent / line
        name = _inside(place, root)
        if name is None:
            text = f"{line[:80]} is outside {root}, the folder of the data set"
            faults.add("paths outside the data set", where, text)
            continue
        unsafe = unsafe_file_name(name)
        if unsafe:
            text = f"{line[:80]!r}, {unsafe}"
            faults.add("file names that cannot be used", where, text)
        else:
            yield name


def _inside(place: Path, root: Path) -> str | None:
    """Return a path relative to the root, without following links; None if it is not below."""
    relative = os.path.relpath(os.path.normpath(place), root)
    relative = relative.replace(os.sep, "/")
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
    missing, leaving_images = find_misplaced(root, names)
    leaving_labels = find_misplaced(label_root, labels).leaving
    if follow_links:
        leaving_images = {}
        leaving_labels = {}
    files = FileIndex(root)
    bad = {}
    for index in missing:
        similar = files.similar_to(names[index])
        hint = f", did you mean {similar!r}?" if similar else ""
        bad[index] = ("images that are missing", f"is missing{hint}")
    for where, leaving in (
        (root, leaving_images),
        (label_root, leaving_labels),
    ):
        for index, target in leaving.items():
            text = f"or its labels lead out of {where} to {target}; give --follow-links if you trust it"
            bad.setdefault(
                index, ("images or labels outside the data set", text)
            )
    for index, name in enumerate(names):
        reason = unsafe_file_name(name)
        if reason:
            bad[index] = ("file names that cannot be used", reason)
    for index, (kind, reason) in sorted(bad.items()):
        faults.add(kind, str(root / names[index]), reason)
    return [index for index in range(len(names)) if index not in bad]


def _label_root(root: Path, names: Sequence[str]) -> Path:
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


def _read_labels(
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
            f"class {words[0][:20]} is not among the {len(names)} names "
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
