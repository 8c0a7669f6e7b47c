"""Validation images are drawn with a seed, with every class in both parts where possible."""

import numpy as np
import pytest

from src.core.errors import DataError
from src.data.preparation.labelled_images import LabelledImage
from src.data.preparation.splitting import (
    choose_validation,
    same_pictures,
    split,
)
from tests.fixtures.label_formats import write_images


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


def test_group_is_in_one_part_and_splits_others_as_before():
    classes = {f"{n:02}.jpg": {0} for n in range(30)}
    group = ["03.jpg", "11.jpg", "12.jpg", "25.jpg"]
    for seed in range(10):
        chosen = choose_validation(classes, 0.3, seed, [group])
        assert len(chosen & set(group)) in (0, len(group))
        assert chosen < set(classes)


def test_images_that_are_all_the_same_cannot_be_split():
    with pytest.raises(DataError, match="cannot be split"):
        choose_validation({"a": {0}, "b": {0}}, 0.5, 0, [["a", "b"]])


def test_equal_files_and_copies_by_roboflow_are_the_same_picture(tmp_path):
    write_images(tmp_path, "ab")
    twin = tmp_path / "z.png"
    twin.write_bytes((tmp_path / "a.png").read_bytes())
    copies = [f"dog_jpg.rf.{letter * 32}.jpg" for letter in "0f"]
    alone = f"cat_jpg.rf.{'a' * 32}.jpg"
    names = ["a.png", "b.png", "z.png", *copies, alone]
    assert same_pictures(tmp_path, names) == [["a.png", "z.png"], copies]


def test_groups_with_an_image_in_common_become_one(tmp_path):
    write_images(tmp_path, "a")
    content = (tmp_path / "a.png").read_bytes()
    names = [f"dog.rf.{letter * 32}.png" for letter in "0f"]
    (tmp_path / names[1]).write_bytes(content)
    assert same_pictures(tmp_path, ["a.png", *names]) == [["a.png", *names]]
