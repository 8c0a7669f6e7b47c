"""Handling of images that cannot be read, tested without a data set."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from src.core.errors import DataError
from src.data.dataset.coco_format import load_coco
from src.data.dataset.decoding import (
    ImageError,
    ImageFlag,
    ImageSizeError,
)
from src.data.dataset.image_file import ImageFile, first_readable
from src.data.dataset.image_policy import BAD_IMAGES, ImagePolicy
from src.data.dataset.listed_images import ListedImages
from tests.fixtures.coco_files import sound_coco, write_coco


def policy(
    folder: Path,
    bad_images: float | None = None,
    *,
    empty: tuple[int, ...] = (),
) -> ImagePolicy:
    """Return the policy of ten images, some of which are empty files."""
    labels = load_coco(write_coco(folder, sound_coco(10)))
    for index in empty:
        (folder / labels.file_name(index)).write_bytes(b"")
    return ImagePolicy(
        ListedImages(labels, folder, follow_links=False, watch=True), bad_images
    )


def load(images: ImagePolicy, index: int) -> tuple[int, Tensor]:
    """Return the position and the pixels of an image or its replacement."""
    return first_readable(
        ImageFile(images, index, may_reduce=False),
        np.random.default_rng(0),
        lambda file: (file.index, file.decode(1).image),
    )


def test_a_sound_image_is_returned_itself(tmp_path):
    index, image = load(policy(tmp_path), 3)
    assert (index, tuple(image.shape)) == (3, (3, 30, 40))


def test_another_image_is_returned_in_place_of_one_that_cannot_be_read(
    tmp_path,
):
    images = policy(tmp_path, 0.1, empty=(3,))
    index, _ = load(images, 3)
    assert index != 3 and images.unreadable() == [3]


def test_the_error_of_another_image_is_raised(tmp_path):
    """As of an image that a transform opens: the image itself must not count as unreadable."""
    images = policy(tmp_path, 0.1)

    def read(file):
        raise ImageError("image other.png is damaged")

    file = ImageFile(images, 3, may_reduce=False)
    with pytest.raises(ImageError, match=r"other\.png"):
        first_readable(file, np.random.default_rng(0), read)
    assert images.unreadable() == []


def test_an_image_of_another_size_than_its_labels_is_never_replaced(tmp_path):
    images = policy(tmp_path, 0.9)
    Image.new("RGB", (41, 30)).save(images.images.path(3))
    with pytest.raises(ImageSizeError):
        load(images, 3)


def test_training_tolerates_a_thousandth_unless_the_settings_say_otherwise(
    tmp_path,
):
    images = policy(tmp_path)
    images.allow()
    assert images.bad_images == BAD_IMAGES
    images.refuse()
    images.allow()
    assert images.bad_images == 0


def test_remembered_images_count_and_are_not_reported_again(tmp_path, caplog):
    images = policy(tmp_path, 0.1, empty=(3, 4))
    images.remember_unreadable([3])
    images.report()
    assert caplog.text == ""
    with pytest.raises(DataError, match="^2 of 10 images"):
        load(images, 4)


def test_images_with_a_flag_are_reported_once(tmp_path):
    images = policy(tmp_path)
    images.flags.add(2, ImageFlag.CMYK)
    (line,) = images.describe_news(ImageFlag.CMYK)
    assert line.endswith(
        "labels.json: CMYK images, converted to RGB: 1 (first: 3.png)"
    )
    assert images.describe_news(ImageFlag.CMYK) == []
