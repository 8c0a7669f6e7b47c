"""Split of a data set into training and validation images."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from ...core.counts import counted
from ...core.errors import DataError
from ..dataset.duplicate_images import find_duplicates
from ..dataset.header_scan import UNKNOWN, scan_alone
from .labelled_images import LabelledImage, LabelledImages


def split(
    images: Sequence[LabelledImage],
    fraction: float,
    seed: int,
    groups: Sequence[Sequence[str]] = (),
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Split images for training and validation.

    The split depends on the seed and the file names, not on the order. A class in two or more images is in
    both parts: every class, beginning with the rarest, gets an image for validation, then random images are
    added.

    Args:
        images: at least two images.
        fraction: fraction for validation, above 0 and below 1; classes may require more, up to half.
        seed: random seed.
        groups: file names of images that stay in the same part, such as duplicates.

    Raises:
        DataError: if there is only one image, or only one group.
    """
    classes = {image.file_name: _classes([image]) for image in images}
    chosen = choose_validation(classes, fraction, seed, groups)
    train: list[LabelledImage] = []
    val: list[LabelledImage] = []
    for image in sorted(images, key=_file_name):
        part = val if image.file_name in chosen else train
        part.append(image)
    return train, val


def choose_validation(
    classes_by_name: Mapping[str, set[int]],
    fraction: float,
    seed: int,
    groups: Sequence[Sequence[str]] = (),
) -> set[str]:
    """Return the file names of the images for validation, as `split` describes.

    Args:
        classes_by_name: classes in each image, by file name.
        fraction: as for `split`.
        seed: as for `split`.
        groups: as for `split`; a group is treated as one image with the first of its names.

    Raises:
        DataError: if there is only one image, or only one group.
    """
    units = {name: [name] for name in classes_by_name}
    for group in groups:
        first, *others = sorted(group)
        for name in others:
            units[first] += units.pop(name)
    if len(units) < 2:
        raise DataError(
            f"{len(units)} image cannot be split into training and validation"
        )

    def random_key(name: str) -> bytes:
        text = f"{seed}/{name}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).digest()

    order = sorted(units, key=random_key)
    classes: list[set[int]] = []
    for name in order:
        own = [classes_by_name[other] for other in units[name]]
        classes.append(set().union(*own))
    wanted = max(1, round(fraction * len(order)))
    wanted = min(wanted, len(order) - 1)
    chosen: set[str] = set()
    for index in _choose(classes, wanted):
        chosen.update(units[order[index]])
    return chosen


def _file_name(image: LabelledImage) -> str:
    return image.file_name


def _choose(classes: Sequence[set[int]], wanted: int) -> set[int]:
    """Return the positions of the validation images.

    Args:
        classes: classes in each image; the first images are preferred.
        wanted: number of images; classes may require more, up to half of all.
    """
    left = Counter(chain.from_iterable(classes))
    with_class: dict[int, list[int]] = {}
    for index, found in enumerate(classes):
        for c in found:
            with_class.setdefault(c, []).append(index)
    chosen: set[int] = set()
    covered: set[int] = set()

    def is_spare(index: int) -> bool:
        """Return whether every class still has an image for training without this one."""
        if index in chosen:
            return False
        return all(left[c] > 1 for c in classes[index])

    def choose_first(candidates: Iterable[int]) -> None:
        """Choose the first image that training can spare."""
        for index in candidates:
            if is_spare(index):
                chosen.add(index)
                left.subtract(classes[index])
                covered.update(classes[index])
                return

    limit = max(wanted, len(classes) // 2)
    # sorting is stable: classes in equally many images are in the order of their ids
    rarest_first = sorted(sorted(with_class), key=lambda c: len(with_class[c]))
    for c in rarest_first:
        if c not in covered and len(chosen) < limit:
            choose_first(with_class[c])
    for index in range(len(classes)):
        if len(chosen) >= wanted:
            break
        choose_first([index])
    # if nothing was chosen, every image has the only object of a class
    return chosen or {0}


def split_if_needed(
    data: LabelledImages,
    fraction: float,
    seed: int,
) -> Iterator[str]:
    """Split off validation images if there are none; yield lines about it."""
    if data.parts.get("val"):
        return
    images = data.parts["train"]
    groups = same_pictures(data.folder, [image.file_name for image in images])
    yield from describe_groups(groups)
    train, val = split(images, fraction, seed, groups)
    data.parts = {**data.parts, "train": train, "val": val}
    yield describe_split(
        _classes(train), _classes(val), len(train), len(val), fraction, seed
    )


def describe_split(
    train_classes: set[int],
    val_classes: set[int],
    num_train: int,
    num_val: int,
    fraction: float,
    seed: int,
) -> str:
    """Return a line about a split: numbers of images, and how many classes are in both parts."""
    return (
        f"no validation images: {num_val} of {num_train + num_val} were set aside "
        f"(--val-fraction {fraction:g} --seed {seed}); "
        f"{len(train_classes & val_classes)} of {len(train_classes | val_classes)} classes are in both parts"
    )


def same_pictures(folder: Path, names: Sequence[str]) -> list[list[str]]:
    """Return groups of files that show the same picture.

    These are files with the same content, and the copies `a_jpg.rf.<hash>.jpg` that Roboflow makes of one
    image by augmentation.

    Args:
        folder: image folder.
        names: file names relative to the folder, each of them once.
    """
    paths = [str(folder / name) for name in names]
    sizes = np.full((len(paths), 2), UNKNOWN, np.int64)
    groups: list[list[str]] = []
    if paths:
        scan = scan_alone(paths, sizes)
        name_of = dict(zip(paths, names))
        for group in find_duplicates([scan]).within(0):
            groups.append([name_of[path] for path in group])
    copies: dict[str, list[str]] = {}
    for name in names:
        match = _ROBOFLOW_COPY.fullmatch(name)
        if match:
            copies.setdefault(match[1], []).append(name)
    return _joined([*groups, *copies.values()])


_ROBOFLOW_COPY = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{20,64}\.\w+")
"""Pattern of the names in exports of Roboflow: the name of the original image, and a hash."""


def _joined(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Join groups that have a name in common; return those with several names, in a fixed order."""
    group_of: dict[str, list[str]] = {}
    for group in groups:
        members: list[str] = []
        for name in group:
            members += group_of.get(name, [name])
        members = list(dict.fromkeys(members))
        for name in members:
            group_of[name] = members
    found: dict[int, list[str]] = {}
    for members in group_of.values():
        if len(members) > 1:
            found[id(members)] = sorted(members)
    return sorted(found.values())


def describe_groups(groups: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a line about images that stay in the same part."""
    if groups:
        count = sum(map(len, groups))
        yield (
            f"{count} images show the same {counted(len(groups), 'picture')} (first: "
            f"{', '.join(groups[0][:2])}); all images of a picture stay in the same part"
        )


def _classes(images: Sequence[LabelledImage]) -> set[int]:
    """Return the classes of the objects in images."""
    found: set[int] = set()
    for image in images:
        found.update(image.categories[~image.crowds].tolist())
    return found
