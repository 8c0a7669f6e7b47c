"""Recognition of COCO files and of the folders of their images.

Recognized are files in the folder itself, in `annotations/`, and in the folders of parts, as Roboflow writes
them (`train/_annotations.coco.json`). The part of a file follows from its name or its folder. The image
folder is the one near the file that contains the listed names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...core.errors import DataError
from ...core.fault_lists import listed
from ..dataset.annotation_text import (
    LISTS,
    parse_record,
    read_annotation_file,
    split_records,
)
from ..dataset.image_names import unsafe_file_name
from .folders import Entries, part_of

SAMPLED = 50
"""Number of images of a file that are looked for in each folder."""

MOST_FILES = 50
"""Maximum number of JSON files of a folder to examine; some tools write one JSON file per image."""

MOST_FOLDERS = 200
"""Maximum number of folders in which images are looked for."""

_OTHER_COCO = (
    "captions_",
    "person_keypoints_",
    "panoptic_",
    "stuff_",
    "image_info_",
)
"""Beginnings of the names of COCO's files for other tasks."""

_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True)
class CocoFile:
    """A COCO file with the folder of its images."""

    path: Path
    images: Path
    class_names: list[str]
    """In the order of the category ids."""


@dataclass(frozen=True)
class CocoLayout:
    """COCO files by part."""

    data_format = "coco"
    root: Path
    files: dict[str, Path]
    unused: tuple[Path, ...] = ()
    """COCO files that are not used: their names contain no part."""

    def where(self) -> str:
        """Return the place of the labels for a message."""
        path = next(iter(self.files.values()))
        return os.path.relpath(path, self.root)


def find_coco(root: Path) -> CocoLayout | None:
    """Return the COCO files of a folder, or None if there are none.

    Raises:
        DataError: if it is not clear which file is for which part.
    """
    by_part: dict[str | None, list[Path]] = {}
    for path in _coco_files_in(Entries(root), root):
        by_part.setdefault(_part_of_file(path, root), []).append(path)
    if not by_part:
        return None
    for part in ("train", "val", "test"):
        if len(by_part.get(part, ())) > 1:
            raise _unclear(root, by_part[part], f"are for {part}")
    unnamed = by_part.pop(None, [])
    files = {part: paths[0] for part, paths in by_part.items() if part}
    if "train" not in files and unnamed:
        if len(unnamed) > 1:
            raise _unclear(root, unnamed, "do not say which part they are for")
        files["train"] = unnamed.pop()
    return CocoLayout(root, files, tuple(unnamed))


def _unclear(root: Path, paths: list[Path], what: str) -> DataError:
    names = listed([os.path.relpath(path, root) for path in paths], shown=5)
    return DataError(
        f"{root} has {len(paths)} COCO files that {what} ({names}); "
        "give the file for training with --data FILE"
    )


def coco_partners(path: Path) -> CocoLayout:
    """Return a file as the training data, with the files for validation and test that belong to it by name.

    These are `val.json` beside `train.json`, `instances_val2017.json` beside `instances_train2017.json`, and
    `valid/_annotations.coco.json` beside `train/_annotations.coco.json`. A file that is not named for
    training has no partners.
    """
    root = _root_of(path)
    files = {"train": path}
    for part, words in (
        ("val", ("val", "valid", "validation")),
        ("test", ("test",)),
    ):
        for partner in _partners(path, words):
            if part not in files and partner.is_file():
                files[part] = partner
    return CocoLayout(root, files)


def _partners(path: Path, words: tuple[str, ...]) -> Iterator[Path]:
    for word in words:
        if part_of(path.stem) == "train":
            yield path.with_name(path.name.replace("train", word))
        elif (
            part_of(path.stem) is None and part_of(path.parent.name) == "train"
        ):
            folder = path.parent.name.replace("train", word)
            yield path.parent.with_name(folder) / path.name


def _root_of(path: Path) -> Path:
    """Return the folder of the data set that a file belongs to."""
    folder = path.parent
    is_part = part_of(folder.name) and part_of(path.stem) is None
    if folder.name.lower().startswith("annotation") or is_part:
        return folder.parent
    return folder


def _coco_files_in(entries: Entries, root: Path) -> Iterator[Path]:
    yield from _coco_files(entries)
    for folder in entries.folders:
        if folder.name.lower().startswith("annotation") or part_of(folder.name):
            yield from _coco_files(Entries(folder))


def _coco_files(entries: Entries) -> Iterator[Path]:
    """Yield the COCO files with boxes of a folder."""
    files = entries.with_suffix(".json")
    detection = [p for p in files if p.name.startswith("instances_")]
    exported = [p for p in files if p.name == "_annotations.coco.json"]
    for path in (detection or exported or files)[:MOST_FILES]:
        if not path.name.startswith(_OTHER_COCO) and _is_coco(path):
            yield path


def _is_coco(path: Path) -> bool:
    """Return whether a file is JSON with the lists of COCO, whatever they contain."""
    try:
        keys = _KEYS.decode(read_annotation_file(path))
    except (DataError, msgspec.MsgspecError, RecursionError, UnicodeError):
        return False
    return all(key in keys for key in LISTS)


def _part_of_file(path: Path, root: Path) -> str | None:
    part = part_of(path.stem)
    if part is None and path.parent != root:
        part = part_of(path.parent.name)
    return part


def open_coco(path: Path, root: Path, images: Path | None = None) -> CocoFile:
    """Read the image and category lists of a file, and find its image folder.

    Args:
        path: COCO file.
        root: folder of the data set.
        images: image folder; None looks for it.

    Raises:
        DataError: if the file is not COCO, or if its images are not found.
    """
    content = split_records(read_annotation_file(path), path)
    classes: dict[int, str] = {}
    for record in content["categories"]:
        values = parse_record(record)
        if isinstance(values, dict) and isinstance(values.get("id"), int):
            classes[values["id"]] = str(values.get("name"))
    class_names = [classes[number] for number in sorted(classes)]
    if images is None:
        names = list(_sample(content["images"]))
        images = _image_folder(path, root, names)
    return CocoFile(path, images, class_names)


def _sample(records: list[Any]) -> Iterator[str]:
    """Yield file names of some images, evenly distributed over the list."""
    step = max(1, len(records) // SAMPLED)
    for record in records[::step]:
        values = parse_record(record)
        name = values.get("file_name") if isinstance(values, dict) else None
        if unsafe_file_name(name) is None:
            yield str(name)


def _image_folder(path: Path, root: Path, names: list[str]) -> Path:
    """Return the folder that contains the most of some file names.

    Raises:
        DataError: if no folder contains any of them.
    """
    if not names:
        return path.parent
    part = _part_of_file(path, root)
    best = (0, False)
    found = None
    folders = list(_candidates(path, root))
    for folder in folders:
        count = sum((folder / name).is_file() for name in names)
        key = (count, part is not None and part_of(folder.name) == part)
        if count and key > best:
            best = key
            found = folder
    if found is None:
        raise DataError(
            f"{path} lists {names[0]!r}, which is in none of {len(folders)} folders in and around "
            f"{root}; give the image folder with --data-images DIR"
        )
    return found


def _candidates(path: Path, root: Path) -> Iterator[Path]:
    """Yield the folders in which the images of a file may be, beginning with its own."""
    seen: set[Path] = set()
    for base in (path.parent, root):
        yield from _new(base, seen)
        first = list(_folders(base))
        for folder in first:
            yield from _new(folder, seen)
        for folder in first:
            for inner in _folders(folder):
                yield from _new(inner, seen)


def _new(folder: Path, seen: set[Path]) -> Iterator[Path]:
    if folder not in seen and len(seen) < MOST_FOLDERS:
        seen.add(folder)
        yield folder


def _folders(folder: Path) -> list[Path]:
    try:
        return Entries(folder).folders
    except DataError:
        return []
