"""The image files of an annotation file, without a data set around them."""

from pathlib import Path

import pytest
from PIL import Image

from src.core.errors import DataError
from src.data.dataset.coco_format import load_coco
from src.data.dataset.listed_images import ListedImages, describe_duplicates
from tests.fixtures.coco_files import sound_coco, write_coco


def images_of(folder: Path, count: int = 3) -> ListedImages:
    return ListedImages(
        load_coco(write_coco(folder, sound_coco(count))),
        folder,
        follow_links=False,
        watch=True,
    )


def test_images_have_a_path_a_size_and_a_description(tmp_path):
    images = images_of(tmp_path)
    assert (images.path(1), images.size(1), images.describe(1)) == (
        tmp_path / "2.png",
        (40, 30),
        "2 (2.png)",
    )


def test_a_missing_image_is_named(tmp_path):
    images = images_of(tmp_path)
    images.path(1).rename(tmp_path / "2.PNG")
    with pytest.raises(
        DataError,
        match=r"^1 of 3 images of .*: images\[1\] \(id 2\) '2.png', did you mean '2.PNG'",
    ):
        images.check_exist()


def test_an_image_of_another_size_is_found_by_its_header(tmp_path):
    images = images_of(tmp_path)
    Image.new("RGB", (41, 30)).save(images.path(2))
    with pytest.raises(
        DataError,
        match=r"^1 of 3 images of .*3.png has 41 x 30, its labels were made for 40 x 30;",
    ):
        images.scan_headers()


def test_images_with_the_same_content_are_described_once_all_are_scanned(
    tmp_path,
):
    images = images_of(tmp_path)
    images.path(2).write_bytes(images.path(0).read_bytes())
    assert describe_duplicates([images]) == []
    images.scan_headers()
    assert describe_duplicates([images]) == [
        f"{tmp_path / 'labels.json'}: images with the content of another one: 1 "
        f"(first: {tmp_path / '3.png'} is {tmp_path / '1.png'})"
    ]
