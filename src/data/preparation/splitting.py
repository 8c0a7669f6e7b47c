"""Training and validation images from one set."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

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
    left = Counter(c for found in classes for c in found)
    with_class: dict[int, list[int]] = {}
    for index, found in enumerate(classes):
        for c in found:
            with_class.setdefault(c, []).append(index)
    wanted = min(max(1, round(fraction * len(order))), len(order) - 1)
    chosen: set[int] = set()

    def may_go(index: int) -> bool:
        return index not in chosen and all(left[c] > 1 for c in classes[index])

    def choose(index: int) -> None:
        chosen.add(index)
        left.subtract(classes[index])

    covered: set[int] = set()
    for c in sorted(with_class, key=lambda c: (len(with_class[c]), c)):
        if c not in covered and len(chosen) < max(wanted, len(order) // 2):
            index = next((i for i in with_class[c] if may_go(i)), None)
            if index is not None:
                choose(index)
                covered |= classes[index]
    for index in range(len(order)):
        if len(chosen) >= wanted:
            break
        if may_go(index):
            choose(index)
    if not chosen:  # every image holds the only one of a class
        chosen.add(0)
    by_name = sorted(range(len(order)), key=lambda i: order[i].file_name)
    return [order[i] for i in by_name if i not in chosen], [order[i] for i in by_name if i in chosen]


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
