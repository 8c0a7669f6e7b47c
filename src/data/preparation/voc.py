"""Data sets in the layout of Pascal VOC: `Annotations/*.xml`, `JPEGImages/`, `ImageSets/Main/*.txt`.

VOC counts pixels from 1, and its boxes include their last pixel: xmin 1 and xmax 10 are the first ten
columns, x from 0 to 10. Many tools write the same layout with corners counted from 0, which `zero_based`
reads.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from ...core.errors import DataError
from ...core.paths import open_regular, read_text
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
"""Handling of objects flagged as difficult: ordinary boxes, dropped, or crowd regions (neither learned nor
scored)."""


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class _Annotated(NamedTuple):
    """Content of an annotation file."""

    image: str
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
    by_stem = {
        path.stem: path.name for path in sorted(images.iterdir()) if is_image_file(path)
    }
    folder = _Folder(root, images, by_stem, FileIndex(images), follow_links)
    found = {
        part: _read_part(folder, stems, account.faults) for part, stems in sets.items()
    }
    account.faults.raise_if_any()
    if not found.get("train"):
        raise DataError(f"{root} has no images to train on: {_why_empty(root)}")
    if spare := len(
        by_stem.keys() - {stem for stems in sets.values() for stem in stems}
    ):
        account.notes["images without an annotation file or not listed, left out"] += (
            spare
        )
    ids = _category_ids(root, found)
    parts = {
        part: [
            _labelled(*image, ids, difficult, zero_based, account) for image in entries
        ]
        for part, entries in found.items()
    }
    account.faults.raise_if_any()
    if not any(len(image.boxes) for part in parts.values() for image in part):
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


def _read_part(folder: _Folder, stems: list[str], faults: Faults) -> list[_Annotated]:
    """Read the annotation files of a part; unusable files are added as faults."""
    annotations = folder.root / "Annotations"
    outside: set[str] = set()
    if not folder.follow_links:
        leaving = find_misplaced(annotations, [f"{stem}.xml" for stem in stems]).leaving
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
            faults.add("annotation files that cannot be used", str(path), str(error))
    return found


def _category_ids(root: Path, found: dict[str, list[_Annotated]]) -> dict[str, int]:
    """Return ids from 1 for the names of all objects, sorted."""
    names = {
        thing.name
        for part in found.values()
        for image in part
        for thing in image.objects
    }
    if not names:
        raise DataError(f"{root} has no object in any annotation file")
    return {name: number for number, name in enumerate(sorted(names), 1)}


def _why_empty(root: Path) -> str:
    """Return why there are no training images."""
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
        with open_regular(path) as file:
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
    (
        parser.StartElementHandler,
        parser.EndElementHandler,
        parser.CharacterDataHandler,
    ) = (
        builder.start,
        builder.end,
        builder.data,
    )
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        raise DataError(
            f"is not valid XML: {expat.ErrorString(error.code)}, line {error.lineno} column "
            f"{error.offset + 1}"
        ) from None
    except (LookupError, ValueError) as error:
        raise DataError(f"is not valid XML: {error}") from None
    return builder.close()


def _image_sets(root: Path, faults: Faults) -> dict[str, list[str]]:
    """Return the stems of each part."""
    folder = root / "ImageSets" / "Main"
    lists = {
        part: folder / f"{part}.txt"
        for part in ("train", "val", "test", "trainval")
        if (folder / f"{part}.txt").is_file()
    }
    whole = lists.pop("trainval", None)
    if "train" not in lists:
        if whole is None:
            return {
                "train": sorted(
                    path.stem for path in (root / "Annotations").glob("*.xml")
                )
            }
        lists = {"train": whole} | {
            part: lists[part] for part in ("test",) if part in lists
        }
    return {part: list(_stems(path, faults)) for part, path in lists.items()}


def _stems(path: Path, faults: Faults) -> Iterator[str]:
    for number, line in enumerate(read_text(path, errors="replace").splitlines(), 1):
        if words := line.split():
            words[0] = words[0].removesuffix(".xml")
            if os.path.splitext(words[0])[1].lower() in IMAGE_SUFFIXES:
                words[0] = os.path.splitext(words[0])[0]
            if unsafe_file_name(words[0]) or "/" in words[0] or "\\" in words[0]:
                text = f"{words[0][:80]!r} is not the name of an image"
                faults.add(
                    "lines that do not name an image", f"{path} line {number}", text
                )
            else:
                yield words[0]


def _image_name(
    tree: ElementTree.Element, stem: str, by_stem: dict[str, str], index: FileIndex
) -> str:
    """Return the image of an annotation file: the one with the same name, otherwise the one in `filename`."""
    if stem in by_stem:
        if reason := unsafe_file_name(by_stem[stem]):
            raise DataError(f"its image is {by_stem[stem]!r}, {reason}")
        return by_stem[stem]
    name = (tree.findtext("filename") or "").strip()
    if name and (found := index.meant_by(name)):
        return found
    if reason := unsafe_file_name(name):
        raise DataError(
            f"there is no image {stem}.*, and filename is {name[:80]!r}, {reason}"
        )
    return name


def _image_size(
    tree: ElementTree.Element, images: Path, name: str, follow_links: bool
) -> tuple[int, int]:
    """Return (width, height) of the labels: the written size, which must match the stored or the upright
    image.
    """
    missing, leaving = find_misplaced(images, [name])
    if missing:
        raise DataError(f"its image {images / name} is missing")
    if leaving and not follow_links:
        raise DataError(
            f"its image {images / name} leads out of {images} to {leaving[0]}; give "
            "--follow-links if you trust it"
        )
    try:
        stored, upright = image_size(images / name)
    except ImageError as error:
        raise DataError(f"its {error}") from None
    texts = (
        (tree.findtext(f"size/{key}") or "0").strip() for key in ("width", "height")
    )
    written = tuple(text.removesuffix(".0") for text in texts)
    if "0" in written or "" in written:
        return upright
    for size in (upright, stored):
        if written == tuple(map(str, size)):
            return size
    raise DataError(
        f"size is {written[0][:20]} x {written[1][:20]}, but {images / name} has {upright[0]} x {upright[1]}"
    )


def _objects(tree: ElementTree.Element) -> Iterator[_Object]:
    for number, node in enumerate(
        (node for node in tree if node.tag.lower() == "object"), 1
    ):
        name = " ".join((node.findtext("name") or "").split())
        if not name:
            raise DataError(f"object {number} has no name")
        if len(node.findall("bndbox")) > 1:
            raise DataError(
                f"object {number} ({name[:40]}) has {len(node.findall('bndbox'))} bndbox, expected one"
            )
        texts = [
            (node.findtext(f"bndbox/{key}") or "").strip()
            for key in ("xmin", "ymin", "xmax", "ymax")
        ]
        try:
            box = tuple(map(float, texts))
        except ValueError:
            box = ()
        if len(box) != 4 or not all(
            abs(value) < 1e9 for value in box
        ):  # NaN is not smaller either
            raise DataError(
                f"object {number} ({name[:40]}): bndbox is {', '.join(texts)[:80]}, expected "
                "xmin, ymin, xmax, ymax"
            )
        yield _Object(
            name, box, (node.findtext("difficult") or "0").strip() not in ("0", "")
        )


def _from_pixel_counts(corners: np.ndarray) -> np.ndarray:
    """Convert inclusive pixel numbers from 1 into coordinates: the smaller of two corners is shifted by
    one.
    """
    first, second = corners[:, :2], corners[:, 2:]
    return np.concatenate([first - (first <= second), second - (second < first)], 1)


def _labelled(
    name: str,
    size: tuple[int, int],
    objects: list[_Object],
    ids: dict[str, int],
    difficult: str,
    zero_based: bool,
    account: Account,
) -> LabelledImage:
    notes = account.notes
    if difficult == "skip":
        notes["difficult objects, left out"] += sum(
            thing.difficult for thing in objects
        )
        objects = [thing for thing in objects if not thing.difficult]
    corners = np.array([thing.box for thing in objects], np.float64).reshape(-1, 4)
    if not zero_based:
        notes[
            "boxes with a corner at 0, where VOC begins with 1 (--zero-based reads corners from 0)"
        ] += int((corners[:, :2] == 0).any(1).sum())
        corners = _from_pixel_counts(corners)
    places = [
        f"{name}: object {number} ({thing.name[:40]})"
        for number, thing in enumerate(objects, 1)
    ]
    inside, kept = boxes_inside(corners, size, places, account)
    crowds = np.array(
        [thing.difficult and difficult == "crowd" for thing in objects], bool
    )
    return LabelledImage(
        name,
        size,
        np.array([ids[thing.name] for thing in objects], np.int64)[kept],
        inside[kept],
        crowds[kept],
    )
