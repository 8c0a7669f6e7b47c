"""Training and validation images from one set."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ...core.errors import DataError
from .labelled_images import LabelledImage, LabelledImages


def split(
    images: Sequence[LabelledImage], fraction: float, seed: int
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Split images for training and validation.

    Which image goes where follows from the seed and its file name, whatever the order. A class in two or more images is
    in both parts: first, from the rarest on, every class gets an image for validation, then chance fills the part up.

    Args:
        images: at least two.
        fraction: share for validation, above 0 and below 1; classes may ask for more, up to half.
        seed: of chance.

    Raises:
        DataError: if there is only one image.
    """
    if len(images) < 2:
        raise DataError(f"{len(images)} image cannot be split into training and validation")
    order = sorted(
        images,
        key=lambda image: hashlib.sha256(
            f"{seed}/{image.file_name}".encode(errors="surrogateescape")
        ).digest(),
    )
    classes = [set(image.categories[~image.crowds].tolist()) for image in order]
    chosen = _choose(classes, min(max(1, round(fraction * len(order))), len(order) - 1))
    by_name = sorted(range(len(order)), key=lambda i: order[i].file_name)
    return [order[i] for i in by_name if i not in chosen], [order[i] for i in by_name if i in chosen]


def _choose(classes: Sequence[set[int]], wanted: int) -> set[int]:
    """Return the positions of the validation images.

    Args:
        classes: classes in each image; images that come first are preferred.
        wanted: number of images; classes may ask for more, up to half of all.
    """
    left = Counter(c for found in classes for c in found)
    with_class: dict[int, list[int]] = {}
    for index, found in enumerate(classes):
        for c in found:
            with_class.setdefault(c, []).append(index)
    chosen: set[int] = set()
    covered: set[int] = set()

    def choose_first(candidates: Iterable[int]) -> None:
        """Choose the first image without which every class still has an image for training."""
        for index in candidates:
            if index not in chosen and all(left[c] > 1 for c in classes[index]):
                chosen.add(index)
                left.subtract(classes[index])
                covered.update(classes[index])
                return

    for c in sorted(with_class, key=lambda c: (len(with_class[c]), c)):
        if c not in covered and len(chosen) < max(wanted, len(classes) // 2):
            choose_first(with_class[c])
    for index in range(len(classes)):
        if len(chosen) >= wanted:
            break
        choose_first([index])
    return chosen or {0}  # without a choice, every image has the only object of a class


def split_if_needed(data: LabelledImages, fraction: float, seed: int) -> Iterator[str]:
    """Split off validation images if there are none; yield what was done."""
    if data.parts.get("val"):
        return
    train, val = split(data.parts["train"], fraction, seed)
    data.parts = {**data.parts, "train": train, "val": val}
    seen = [{c for image in part for c in image.categories[~image.crowds].tolist()} for part in (train, val)]
    yield (
        f"no validation images: {len(val)} of {len(train) + len(val)} were set aside (--val-fraction {fraction:g} --seed {seed}); "
        f"{len(seen[0] & seen[1])} of {len(seen[0] | seen[1])} classes are in both parts"
    )
