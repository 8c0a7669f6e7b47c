"""Images of COCO files that need no boxes."""

import json

import pytest

from src.core.errors import DataError
from src.data.dataset.coco_images import load_coco_images

IMAGES = [
    {"id": 2**60 + 1, "file_name": "a.jpg", "width": 4, "height": 3},
    {"id": 7, "file_name": "b/ü.jpg", "width": 9, "height": 9},
]


def write(folder, content) -> str:
    (folder / "a.json").write_text(json.dumps(content))
    return str(folder / "a.json")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"categories": []},
        {"annotations": None},
        {"annotations": [{"broken": 1}]},
    ],
)
def test_annotations_and_categories_may_be_missing_or_broken(tmp_path, more):
    images = load_coco_images(write(tmp_path, {"images": IMAGES, **more}))
    assert images == (["a.jpg", "b/ü.jpg"], [2**60 + 1, 7], [(4, 3), (9, 9)])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({}, '"images" is missing, expected a list'),
        ({"images": {}}, '"images" is a dict, expected a list'),
        ([], "contains a list, expected an object with a list images"),
        ({"images": []}, "images is empty"),
        (
            {"images": [{**IMAGES[0], "id": "x"}]},
            "images[0]: id is 'x', expected a non-negative integer",
        ),
        (
            {"images": [IMAGES[0], {**IMAGES[1], "id": IMAGES[0]["id"]}]},
            "this id is used twice",
        ),
        (
            {"images": [{**IMAGES[0], "file_name": "../a.jpg"}]},
            "which leaves the image folder",
        ),
    ],
)
def test_faults_of_images_are_reported(tmp_path, content, text):
    with pytest.raises(DataError) as caught:
        load_coco_images(write(tmp_path, content))
    assert text in str(caught.value)
