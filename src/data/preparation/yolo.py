"""Data sets in the YOLO layout: images, and text files with boxes as fractions of the image.

A label line is `class cx cy w h`, with all values except the class in 0..1, or a polygon `class x1 y1 x2 y2
x3 y3 ...`, of which the bounding box is used. Images without a label file, or with an empty one, have no
objects.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from ...core.errors import DataError
from ..dataset.box_formats import (
    BEYOND_LIMIT,
    LIKELY_FRACTION,
    MIN_SUSPICIOUS_BOXES,
    OVERHANG,
)
from ..dataset.decoding import ImageError, image_size
from ..dataset.header_scan import UNKNOWN, sizes_of_files
from ..dataset.image_names import FileIndex, is_image_file, unsafe_file_name
from ..dataset.misplaced_files import find_misplaced
from .labelled_images import (
    Account,
    Faults,
    LabelledImage,
    LabelledImages,
    boxes_inside,
)
from .yolo_labels import (
    existing_label,
    find_label_root,
    has_labels,
    label_path,
    label_stem,
    read_labels,
)
from .yolo_yaml import YoloDescription, read_description, yaml_in

MOST_CLASSES = 10_000
"""Class numbers from here on are faults in a data set that does not name its classes."""


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
    path = yaml_in(path)
    account = Account(Faults(path), Counter(), drop_boxes, drop_boxes)
    description = read_description(path, account)
    return read_described(description, account, follow_links=follow_links)


def read_described(
    description: YoloDescription,
    account: Account,
    *,
    follow_links: bool = False,
) -> LabelledImages:
    """Read the labels of a data set whose images are known.

    Args:
        description: images by part, and class names.
        account: collects faults and notes.
        follow_links: open files that are symbolic links out of the data set.

    Raises:
        DataError: if there are faults; one error lists all of them, by kind.
    """
    path, root, given_names, files, extra = description
    names = given_names
    if names is None:
        names = {number: f"class_{number}" for number in range(MOST_CLASSES)}
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
        labels = find_label_root(root, files["train"]) / label_path(first)
        raise DataError(
            f"{path}: no training image has a box; labels of {root / first} would be in {labels}"
        )
    if given_names is None:
        names = _used_names(names, parts)
        account.notes[
            "classes without a name, called class_0, class_1 and so on"
        ] += len(names)
    return LabelledImages(root, names, parts, account.notes)


def _used_names(
    names: dict[int, str], parts: dict[str, list[LabelledImage]]
) -> dict[int, str]:
    """Return the names up to the largest class number that occurs."""
    largest = 0
    for image in chain.from_iterable(parts.values()):
        largest = max(largest, int(image.categories.max(initial=0)))
    return {number: names[number] for number in range(largest + 1)}


def label_files(description: YoloDescription) -> Iterator[Path]:
    """Yield the text files in the label folders of all images."""
    images = list(chain.from_iterable(description.files.values()))
    root = find_label_root(description.root, images)
    folders = {os.path.dirname(label_path(name)) for name in images}
    for folder in sorted(folders):
        for path in sorted((root / folder).glob("*")):
            if path.suffix.lower() == ".txt":
                yield path


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
    label_root = find_label_root(root, images)
    used = set()
    folders = {}
    for name in images:
        labels = label_path(name)
        used.add(label_stem(labels))
        folders[os.path.dirname(labels)] = os.path.dirname(name)
    for folder, image_folder in sorted(folders.items()):
        present = _stems_of_images(root / image_folder)
        for path in sorted((label_root / folder).glob("*")):
            stem = label_stem(path.name)
            is_used = os.path.join(folder, stem) in used
            if path.suffix.lower() != ".txt" or is_used or not has_labels(path):
                continue
            if stem in present:
                account.notes[
                    "labels of images that no list names, left out"
                ] += 1
            elif account.drop_strays:
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
    label_root = find_label_root(root, images)
    labels = [existing_label(label_root, name) for name in images]
    usable = _usable(
        root, images, label_root, labels, account.faults, follow_links
    )
    paths = [root / images[index] for index in usable]
    sizes = _upright_sizes(paths, account.faults)
    result = []
    for index, size in zip(usable, sizes):
        path = label_root / labels[index]
        classes, boxes, places = read_labels(path, names, extra, account)
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
