"""Validation images are drawn with a seed, with every class in both parts where possible."""

import numpy as np
import pytest

from src.core.errors import DataError
from src.data.preparation.labelled_images import LabelledImage
from src.data.preparation.splitting import split


def image(number: int, *classes: int, crowd: bool = False) -> LabelledImage:
    return LabelledImage(
        f"{number:04}.jpg",
        (40, 30),
        np.array(classes, np.int64),
        np.tile([1.0, 2, 3, 4], (len(classes), 1)),
        np.full(len(classes), crowd),
    )


def names(images) -> list[str]:
    return [image.file_name for image in images]


def classes(images) -> set[int]:
    return {c for image in images for c in image.categories.tolist()}


HUNDRED = [image(n, n % 7, *([8] if n in (3, 60) else [])) for n in range(100)]


def test_parts_have_the_requested_size_and_contain_each_image_once():
    train, val = split(HUNDRED, 0.2, 0)
    assert (len(train), len(val)) == (80, 20)
    assert sorted(names(train) + names(val)) == names(HUNDRED)


def test_order_of_files_does_not_matter_and_the_seed_does():
    assert (
        names(split(HUNDRED, 0.2, 0)[1])
        == names(split(HUNDRED[::-1], 0.2, 0)[1])
        != names(split(HUNDRED, 0.2, 1)[1])
    )


def test_an_image_more_hardly_changes_the_split():
    before, after = (
        set(names(split(images, 0.2, 0)[1]))
        for images in (HUNDRED, [*HUNDRED, image(100, 0)])
    )
    assert len(before ^ after) <= 3


@pytest.mark.parametrize("seed", range(10))
def test_each_class_in_two_images_is_in_both_parts(seed):
    train, val = split(HUNDRED, 0.2, seed)
    assert classes(train) == classes(val) == {*range(7), 8}


def test_class_in_one_image_stays_in_training():
    train, _ = split(
        [image(0, 1), image(1, 2), image(2, 2), image(3, 2)], 0.5, 0
    )
    assert classes(train) == {1, 2}


def test_many_rare_classes_need_more_than_the_fraction():
    train, val = split([image(n, n // 2) for n in range(40)], 0.1, 0)
    assert len(val) == 20 and classes(train) == classes(val)


def test_images_without_objects_are_split_too():
    train, val = split([image(n) for n in range(10)], 0.3, 0)
    assert (len(train), len(val)) == (7, 3)


@pytest.mark.parametrize(
    "images",
    [
        [image(0, 1), image(1, 2)],
        [image(0), image(1)],
        [image(0, 1, crowd=True), image(1, 1)],
    ],
)
def test_two_images_are_one_for_each(images):
    assert (
        [len(part) for part in split(images, 0.01, 0)]
        == [len(part) for part in split(images, 0.99, 0)]
        == [1, 1]
    )


def test_one_image_cannot_be_split():
    with pytest.raises(DataError, match="1 image cannot be split"):
        split([image(0, 1)], 0.1, 0)
