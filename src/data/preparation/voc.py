"""Data sets in the layout of Pascal VOC: `Annotations/*.xml`, `JPEGImages/`, `ImageSets/Main/*.txt`.

VOC counts pixels from 1, and its boxes include their last pixel: xmin 1 and xmax 10 are the first ten
columns, x from 0 to 10. Many tools write the same layout with corners counted from 0, which `zero_based`
reads.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from ...core.errors import DataError
from ...core.paths import read_text
from ...runtime.limits import is_system_limit
from ..dataset.coco_records import unsafe_file_name
from ..dataset.decoding import IMAGE_SUFFIXES, ImageError, image_size
from ..dataset.image_names import FileIndex, is_image_file
from ..dataset.misplaced_files import find_misplaced
from .labelled_images import (
    Account,
    Faults,
    LabelledImage,
    LabelledImages,
    boxes_inside,
)

LARGEST_FILE = 16_000_000
"""Maximum size of an annotation file in bytes."""

DIFFICULT = ("keep", "skip", "crowd")
"""Handling of objects flagged as difficult: ordinary boxes, dropped, or crowd regions.

Crowd regions are neither learned nor scored.
"""


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class _Annotated(NamedTuple):
    """Content of an annotation file."""

    name: str
    """File name of the image."""
    size: tuple[int, int]
    objects: list[_Object]


def read_voc(
    root: Path,
    *,
    difficult: str = "keep",
    zero_based: bool = False,
    follow_links: bool = False,
    drop_boxes: bool = False,
) -> LabelledImages:
    """Read a data set; class names, sorted, get category ids from 1.

    `ImageSets/Main/train.txt`, `val.txt` and `test.txt` list the images of each part. Without `train.txt`,
    `trainval.txt` lists the training images; without both, all annotation files are used.

    Args:
        root: folder with `Annotations`.
        difficult: one of `DIFFICULT`.
        zero_based: corners are counted from 0, and the last pixel is not part of a box.
        follow_links: open images that are symbolic links out of the folder.
        drop_boxes: drop boxes without area or outside their image, which are faults otherwise.

    Raises:
        DataError: if there are faults; one error lists all of them, by kind.
    """
    images = _image_folder(root)
    account = Account(Faults(root), Counter(), drop_boxes)
    sets = _image_sets(root, account.faults)
    by_stem = {}
    for path in filter(is_image_file, sorted(images.iterdir())):
        by_stem[path.stem] = path.name
    folder = _Folder(root, images, by_stem, FileIndex(images), follow_links)
    found = {}
    for part, stems in sets.items():
        found[part] = _read_part(folder, stems, account.faults)
    account.faults.raise_if_any()
    if not found.get("train"):
        raise DataError(f"{root} has no images to train on: {_why_empty(root)}")
    listed = chain.from_iterable(sets.values())
    spare = by_stem.keys() - set(listed)
    account.notes[
        "images without an annotation file or not listed, left out"
    ] += len(spare)
    ids = _category_ids(root, found)
    parts: dict[str, list[LabelledImage]] = {}
    for part, entries in found.items():
        parts[part] = []
        for entry in entries:
            image = _labelled(entry, ids, difficult, zero_based, account)
            parts[part].append(image)
    account.faults.raise_if_any()
    all_images = chain.from_iterable(parts.values())
    if not any(len(image.boxes) for image in all_images):
        raise DataError(
            f"{root}: no box is left; --difficult {difficult} leaves out objects marked as difficult"
        )
    categories = {number: name for name, number in ids.items()}
    return LabelledImages(images.resolve(), categories, parts, account.notes)


class _Folder(NamedTuple):
    """The folders of a data set, with an index of its images."""

    root: Path
    images: Path
    by_stem: dict[str, str]
    """Images by their names without a suffix."""
    files: FileIndex
    follow_links: bool


def _image_folder(root: Path) -> Path:
    if not (root / "Annotations").is_dir():
        raise DataError(
            f"{root} has no folder Annotations; Pascal VOC keeps its XML files there"
        )
    for name in ("JPEGImages", "images"):
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{root} has no folder JPEGImages")


def _read_part(
    folder: _Folder,
    stems: list[str],
    faults: Faults,
) -> list[_Annotated]:
    """Read the annotation files of a part; unusable files are added as faults."""
    annotations = folder.root / "Annotations"
    outside: set[str] = set()
    if not folder.follow_links:
        leaving = find_misplaced(
            annotations, [f"{stem}.xml" for stem in stems]
        ).leaving
        outside = {stems[index] for index in leaving}
    found = []
    for stem in stems:
        path = annotations / f"{stem}.xml"
        try:
            if stem in outside:
                raise DataError(
                    f"leads out of {folder.root} by a symbolic link; give --follow-links if you trust it"
                )
            tree = parse_xml(path)
            name = _image_name(tree, stem, folder.by_stem, folder.files)
            size = _image_size(tree, folder.images, name, folder.follow_links)
            found.append(_Annotated(name, size, list(_objects(tree))))
        except DataError as error:
            faults.add(
                "annotation files that cannot be used", str(path), str(error)
            )
    return found


def _category_ids(
    root: Path, found: dict[str, list[_Annotated]]
) -> dict[str, int]:
    """Return ids from 1 for the names of all objects, sorted."""
    names: set[str] = set()
    for image in chain.from_iterable(found.values()):
        names.update(thing.name for thing in image.objects)
    if not names:
        raise DataError(f"{root} has no object in any annotation file")
    return {name: number for number, name in enumerate(sorted(names), 1)}


def _why_empty(root: Path) -> str:
    """Return the reason why there are no training images."""
    if any((root / "Annotations").glob("*/*.xml")):
        return "Annotations has subfolders; put all XML files into Annotations itself"
    return "Annotations holds no XML file, or the list of images is empty"


def parse_xml(path: Path) -> ElementTree.Element:
    """Parse an annotation file; document types, and therefore entities, are refused.

    Raises:
        DataError: if the file cannot be parsed; the message does not contain the file name.
    """

    def refuse(*_: object) -> None:
        raise DataError(
            "has a document type (DTD), which annotation files do not need; it was not read"
        )

    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        if is_system_limit(error):
            raise
        raise DataError(f"cannot be read: {error.strerror or error}") from None
    if len(raw) > LARGEST_FILE:
        raise DataError(f"is larger than {LARGEST_FILE} bytes")
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        raise DataError(
            f"is not valid XML: {what}, line {error.lineno} column {error.offset + 1}"
        ) from None
    except (LookupError, ValueError) as error:
        raise DataError(f"is not valid XML: {error}") from None
    return builder.close()


def _image_sets(root: Path, faults: Faults) -> dict[str, list[str]]:
    """Return the stems of each part."""
    folder = root / "ImageSets" / "Main"
    lists = {}
    for part in ("train", "val", "test", "trainval"):
        path = folder / f"{part}.txt"
        if path.is_file():
            lists[part] = path
    whole = lists.pop("trainval", None)
    if "train" not in lists:
        if whole is None:
            files = (root / "Annotations").glob("*.xml")
            return {"train": sorted(path.stem for path in files)}
        lists["train"] = whole
        lists.pop("val", None)  # its images are among those of trainval
    sets = {}
    for part in ("train", "val", "test"):
        if part in lists:
            sets[part] = list(_stems(lists[part], faults))
    return sets


def _stems(path: Path, faults: Faults) -> Iterator[str]:
    """Yield the first word of each line, without the suffix of an image or annotation file."""
    lines = read_text(path, errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        name = words[0].removesuffix(".xml")
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES:
            name = stem
        if unsafe_file_name(name) or "/" in name or "\\" in name:
            text = f"{name[:80]!r} is not the name of an image"
            place = f"{path} line {number}"
            faults.add("lines that do not name an image", place, text)
        else:
            yield name


def _image_name(
    tree: ElementTree.Element,
    stem: str,
    by_stem: dict[str, str],
    index: FileIndex,
) -> str:
    """Return the image of an annotation file: the one with the same name, otherwise the one in `filename`."""
    if stem in by_stem:
        name = by_stem[stem]
        reason = unsafe_file_name(name)
        if reason:
            raise DataError(f"its image is {name!r}, {reason}")
        return name
    name = _text(tree, "filename")
    found = index.meant_by(name) if name else None
    if found:
        return found
    reason = unsafe_file_name(name)
    if reason:
        raise DataError(
            f"there is no image {stem}.*, and filename is {name[:80]!r}, {reason}"
        )
    return name


def _image_size(
    tree: ElementTree.Element,
    images: Path,
    name: str,
    follow_links: bool,
) -> tuple[int, int]:
    """Return (width, height) of the labels: the written size, or the upright image if none is written.

    The written size must be that of the stored or the upright image.
    """
    missing, leaving = find_misplaced(images, [name])
    if missing:
        raise DataError(f"its image {images / name} is missing")
    if leaving and not follow_links:
        raise DataError(
            f"its image {images / name} leads out of {images} to {leaving[0]}; "
            "give --follow-links if you trust it"
        )
    try:
        stored, upright = image_size(images / name)
    except ImageError as error:
        raise DataError(f"its {error}") from None
    width = _text(tree, "size/width").removesuffix(".0")
    height = _text(tree, "size/height").removesuffix(".0")
    if width in ("", "0") or height in ("", "0"):
        return upright
    for size in (upright, stored):
        if [width, height] == list(map(str, size)):
            return size
    raise DataError(
        f"size is {width[:20]} x {height[:20]}, but {images / name} has {upright[0]} x {upright[1]}"
    )


def _text(node: ElementTree.Element, path: str) -> str:
    """Return the text of a node below another one, or an empty text."""
    return (node.findtext(path) or "").strip()


def _objects(tree: ElementTree.Element) -> Iterator[_Object]:
    nodes = [node for node in tree if node.tag.lower() == "object"]
    for number, node in enumerate(nodes, 1):
        name = " ".join(_text(node, "name").split())
        if not name:
            raise DataError(f"object {number} has no name")
        place = f"object {number} ({name[:40]})"
        boxes = len(node.findall("bndbox"))
        if boxes > 1:
            raise DataError(f"{place} has {boxes} bndbox, expected one")
        texts = [_text(node, f"bndbox/{key}") for key in _CORNERS]
        box = _corners(texts)
        if box is None:
            raise DataError(
                f"{place}: bndbox is {', '.join(texts)[:80]}, expected xmin, ymin, xmax, ymax"
            )
        difficult = _text(node, "difficult") not in ("0", "")
        yield _Object(name, box, difficult)


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _corners(texts: Sequence[str]) -> tuple[float, float, float, float] | None:
    """Return the four numbers that texts contain, or None if they are not numbers or absurdly large."""
    try:
        x1, y1, x2, y2 = map(float, texts)
    except ValueError:
        return None
    corners = (x1, y1, x2, y2)
    if all(abs(value) < 1e9 for value in corners):  # False for NaN
        return corners
    return None


def _from_pixel_counts(corners: np.ndarray) -> np.ndarray:
    """Convert inclusive pixel numbers from 1 into coordinates.

    Along each axis, the smaller of the two corners is shifted by one.
    """
    first = corners[:, :2]
    second = corners[:, 2:]
    first_shift = first <= second
    return np.concatenate([first - first_shift, second - ~first_shift], 1)


def _labelled(
    image: _Annotated,
    ids: dict[str, int],
    difficult: str,
    zero_based: bool,
    account: Account,
) -> LabelledImage:
    notes = account.notes
    objects = image.objects
    if difficult == "skip":
        objects = [thing for thing in objects if not thing.difficult]
        left_out = len(image.objects) - len(objects)
        notes["difficult objects, left out"] += left_out
    boxes = [thing.box for thing in objects]
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    if not zero_based:
        at_zero = (corners[:, :2] == 0).any(1)
        notes[_CORNER_AT_ZERO] += int(at_zero.sum())
        corners = _from_pixel_counts(corners)
    categories = []
    crowds = []
    places = []
    for number, thing in enumerate(objects, 1):
        categories.append(ids[thing.name])
        crowds.append(thing.difficult and difficult == "crowd")
        places.append(f"{image.name}: object {number} ({thing.name[:40]})")
    inside, kept = boxes_inside(corners, image.size, places, account)
    return LabelledImage(
        image.name,
        image.size,
        np.array(categories, np.int64)[kept],
        inside[kept],
        np.array(crowds, bool)[kept],
    )


_CORNER_AT_ZERO = "boxes with a corner at 0, where VOC begins with 1 (--zero-based reads corners from 0)"
