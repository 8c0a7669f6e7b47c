"""The `data.yaml` of YOLO: where the images of each part are, and the names of the classes."""

from __future__ import annotations

import math
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import yaml

from ...core.errors import DataError, first_line
from ...core.paths import did_you_mean_file, read_text, user_path
from ...runtime.log import logger
from ..dataset.image_names import find_image_files, unsafe_file_name
from .labelled_images import Account, Faults
from .layouts import describe_layout

SKELETON = "kpt_shape"


class YoloDescription(NamedTuple):
    """The images of a data set in the YOLO layout, before their labels are read."""

    source: Path
    """`data.yaml`, or the folder of a data set without one; used in messages."""
    root: Path
    names: dict[int, str] | None
    """Class names by number; None numbers the classes that occur."""
    files: dict[str, list[str]]
    """Images by part, relative to the root; the order of keys is train, val, test."""
    extra: int = 0
    """Number of columns that keypoints add to a label line."""


def read_description(path: Path, account: Account) -> YoloDescription:
    """Read a `data.yaml`, and list the images that it names.

    Args:
        path: the file.
        account: collects notes.

    Raises:
        DataError: if the file is not valid, or names no training images.
    """
    settings = _with_usual_names(read_yaml(path))
    names = names_in(settings, path)
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
    return YoloDescription(path, root, names, files, _extra_columns(settings))


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


def yaml_in(path: Path) -> Path:
    """Return the `data.yaml` of a folder, or its only YAML file; a file is returned unchanged.

    Raises:
        DataError: if there is no such file, or if there are several.
    """
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


def read_yaml(path: Path) -> dict[str, Any]:
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


def names_in(settings: dict[str, Any], path: Path) -> dict[int, str]:
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
            f"{path}: nc is {count}, but the number of names is {len(names)}"
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
