"""Data sets in the layout of Pascal VOC: `Annotations/*.xml`, `JPEGImages/`, `ImageSets/Main/*.txt`.

VOC counts pixels from 1, and its boxes include their last pixel: xmin 1 and xmax 10 are the first ten
columns, x from 0 to 10. Many tools write the same layout with corners counted from 0, which `zero_based`
reads.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from ...core.errors import DataError
from ...core.paths import read_text
from ..dataset.decoding import IMAGE_SUFFIXES, ImageError, image_size
from ..dataset.image_names import FileIndex, is_image_file, unsafe_file_name
from ..dataset.misplaced_files import find_misplaced
from .labelled_images import (
    Account,
    Faults,
    LabelledImage,
    LabelledImages,
    boxes_inside,
)
from .voc_xml import VocObject, objects_in, parse_xml, text_of

DIFFICULT = ("keep", "skip", "crowd")
"""Handling of objects flagged as difficult: ordinary boxes, dropped, or crowd regions.

Crowd regions are neither learned nor scored.
"""


class _Annotated(NamedTuple):
    """Content of an annotation file."""

    name: str
    """File name of the image."""
    size: tuple[int, int]
    objects: list[VocObject]


class VocFolders(NamedTuple):
    """The folders of annotation files and of their images; they can be the same."""

    annotations: Path
    images: Path


def read_voc(
    root: Path,
    *,
    folders: Mapping[str, VocFolders] | None = None,
    difficult: str = "keep",
    zero_based: bool = False,
    follow_links: bool = False,
    drop_boxes: bool = False,
    drop_strays: bool = False,
) -> LabelledImages:
    """Read a data set; class names, sorted, get category ids from 1.

    `ImageSets/Main/train.txt`, `val.txt` and `test.txt` list the images of each part. Without `train.txt`,
    `trainval.txt` lists the training images; without both, all annotation files are used.

    Args:
        root: folder of the data set.
        folders: folders inside `root` by part. None means `Annotations` and `JPEGImages`. The lists are read
            if there is only the part "train".
        difficult: one of `DIFFICULT`.
        zero_based: corners are counted from 0, and the last pixel is not part of a box.
        follow_links: open images that are symbolic links out of the folder.
        drop_boxes: drop boxes without area or outside their image, which are faults otherwise.
        drop_strays: leave out annotation files without an image, which are faults otherwise.

    Raises:
        DataError: if there are faults; one error lists all of them, by kind.
    """
    account = Account(Faults(root), Counter(), drop_boxes, drop_strays)
    if folders is None:
        folders = {"train": VocFolders(root / "Annotations", _images_of(root))}
    found: dict[str, list[_Annotated]] = {}
    spare = 0
    if len(folders) == 1:
        only = _Folder(root, folders["train"], "", follow_links)
        sets = _image_sets(root, only.annotations, account.faults)
        image_root = only.images
        spare = len(only.by_stem.keys() - set(chain(*sets.values())))
        for part, stems in sets.items():
            found[part] = _read_part(only, stems, account)
    else:
        image_root = root
        for part, own in folders.items():
            prefix = own.images.relative_to(root).as_posix()
            folder = _Folder(root, own, f"{prefix}/", follow_links)
            stems = _annotated_stems(own.annotations)
            spare += len(folder.by_stem.keys() - set(stems))
            found[part] = _read_part(folder, stems, account)
    account.faults.raise_if_any()
    if not found.get("train"):
        reason = _why_empty(folders["train"].annotations)
        raise DataError(f"{root} has no images to train on: {reason}")
    account.notes[
        "images without an annotation file or not listed, left out"
    ] += spare
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
    return LabelledImages(
        image_root.resolve(), categories, parts, account.notes
    )


class _Folder:
    """Annotation files of a part and an index of its images."""

    def __init__(
        self, root: Path, folders: VocFolders, prefix: str, follow_links: bool
    ) -> None:
        self.root = root
        self.annotations, self.images = folders
        self.prefix = prefix
        """Put before the names of images: they are relative to the folder of all parts."""
        self.files = FileIndex(self.images)
        self.follow_links = follow_links
        self.by_stem: dict[str, str] = {}
        """Images by their names without a suffix."""
        for path in filter(is_image_file, sorted(self.images.iterdir())):
            self.by_stem[path.stem] = path.name


def _images_of(root: Path) -> Path:
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
    account: Account,
) -> list[_Annotated]:
    """Read the annotation files of a part; unusable files are added as faults."""
    annotations = folder.annotations
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
            objects = list(objects_in(tree))
            found.append(_Annotated(folder.prefix + name, size, objects))
        except _ImageMissingError as error:
            if account.drop_strays:
                account.notes[
                    "annotation files without an image, left out"
                ] += 1
            else:
                account.faults.add(UNUSABLE_FILE, str(path), str(error))
        except DataError as error:
            account.faults.add(UNUSABLE_FILE, str(path), str(error))
    return found


UNUSABLE_FILE = "annotation files that cannot be used"


class _ImageMissingError(DataError):
    """The image of an annotation file does not exist."""


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


def _why_empty(annotations: Path) -> str:
    """Return the reason why there are no training images."""
    name = annotations.name
    if any(annotations.glob("*/*.xml")):
        return f"{name} has subfolders; put all XML files into {name} itself"
    if any(annotations.glob("*.xml")):
        return f"no image of the XML files in {name} exists, or the list of images is empty"
    return f"{name} holds no XML file, or the list of images is empty"


def _annotated_stems(annotations: Path) -> list[str]:
    """Return the names of all annotation files without their suffix, sorted."""
    return sorted(path.stem for path in annotations.glob("*.xml"))


def _image_sets(
    root: Path, annotations: Path, faults: Faults
) -> dict[str, list[str]]:
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
            return {"train": _annotated_stems(annotations)}
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
    name = text_of(tree, "filename")
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
        raise _ImageMissingError(f"its image {images / name} is missing")
    if leaving and not follow_links:
        raise DataError(
            f"its image {images / name} leads out of {images} to {leaving[0]}; "
            "give --follow-links if you trust it"
        )
    try:
        stored, upright = image_size(images / name)
    except ImageError as error:
        raise DataError(f"its {error}") from None
    width = text_of(tree, "size/width").removesuffix(".0")
    height = text_of(tree, "size/height").removesuffix(".0")
    if width in ("", "0") or height in ("", "0"):
        return upright
    for size in (upright, stored):
        if [width, height] == list(map(str, size)):
            return size
    raise DataError(
        f"size is {width[:20]} x {height[:20]}, but {images / name} has {upright[0]} x {upright[1]}"
    )


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
        notes[CORNER_AT_ZERO] += int(at_zero.sum())
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


CORNER_AT_ZERO = "boxes with a corner at 0, where VOC begins with 1 (--zero-based reads corners from 0)"
