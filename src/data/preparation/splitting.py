"""Split of a data set into training and validation images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from ...core.errors import DataError
from .labelled_images import LabelledImage, LabelledImages


def split(
    images: Sequence[LabelledImage],
    fraction: float,
    seed: int,
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Split images for training and validation.

    The split depends on the seed and the file names, not on the order. A class in two or more images is in
    both parts: every class, beginning with the rarest, gets an image for validation, then random images are
    added.

    Args:
        images: at least two images.
        fraction: fraction for validation, above 0 and below 1; classes may require more, up to half.
        seed: random seed.

    Raises:
        DataError: if there is only one image.
    """
    if len(images) < 2:
        raise DataError(
            f"{len(images)} image cannot be split into training and validation"
        )

    def random_key(image: LabelledImage) -> bytes:
        text = f"{seed}/{image.file_name}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).digest()

    order = sorted(images, key=random_key)
    classes = [_classes([image]) for image in order]
    wanted = max(1, round(fraction * len(order)))
    wanted = min(wanted, len(order) - 1)
    chosen = _choose(classes, wanted)
    train: list[LabelledImage] = []
    val: list[LabelledImage] = []
    for index, image in enumerate(order):
        part = val if index in chosen else train
        part.append(image)
    train.sort(key=_file_name)
    val.sort(key=_file_name)
    return train, val


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
    """Split off validation images if there are none; yield a line about it."""
    if data.parts.get("val"):
        return
    train, val = split(data.parts["train"], fraction, seed)
    data.parts = {**data.parts, "train": train, "val": val}
    in_train = _classes(train)
    in_val = _classes(val)
    yield (
        f"no validation images: {len(val)} of {len(train) + len(val)} were set aside "
        f"(--val-fraction {fraction:g} --seed {seed}); "
        f"{len(in_train & in_val)} of {len(in_train | in_val)} classes are in both parts"
    )


def _classes(images: Sequence[LabelledImage]) -> set[int]:
    """Return the classes of the objects in images."""
    found: set[int] = set()
    for image in images:
        found.update(image.categories[~image.crowds].tolist())
    return found
