"""Detections of one image and their operations."""

import numpy as np
import pytest
import torch
from PIL import Image

from src.core import ConfigError
from src.inference import Prediction


def prediction(source: str | None = None) -> Prediction:
    return Prediction(
        np.float32([[10, 20, 40, 60], [-3, -2, 50, 90]]),
        np.float32([0.9, 0.5]),
        np.array([1, 0]),
        np.array([7, 3]),
        ["dog", "cat"],
        (48, 80),
        source,
    )


def test_coco_entries_carry_category_ids_and_xywh_boxes():
    assert prediction().to_coco(5)[0] == {
        "image_id": 5,
        "category_id": 7,
        "bbox": [10.0, 20.0, 30.0, 40.0],
        "score": 0.9,
    }


def test_clipped_boxes_end_at_the_border():
    assert prediction().clipped().boxes.tolist() == [
        [10, 20, 40, 60],
        [0, 0, 48, 80],
    ]


def test_a_selection_keeps_everything_together():
    chosen = prediction().select(np.array([1]))
    assert (
        len(chosen) == 1
        and chosen.names == ["cat"]
        and chosen.category_ids.tolist() == [3]
        and chosen.scores.tolist() == [0.5]
    )


def test_it_is_drawn_on_the_file_that_it_came_from(tmp_path):
    Image.new("RGB", (48, 80), (0, 128, 0)).save(tmp_path / "image.png")
    from_file = prediction(str(tmp_path / "image.png")).draw()
    green = torch.zeros(3, 80, 48, dtype=torch.uint8)
    green[1] = 128
    assert np.array_equal(
        np.asarray(from_file), np.asarray(prediction().draw(green))
    )
    assert len(np.unique(np.asarray(from_file).reshape(-1, 3), axis=0)) > 2


def test_without_a_file_the_image_must_be_given():
    with pytest.raises(ConfigError, match="did not come from a file"):
        prediction().draw()


def test_any_kind_of_image_is_drawn_on():
    array = np.full((80, 48, 3), 90, np.uint8)
    kinds = [
        array,
        Image.fromarray(array),
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    pictures = [np.asarray(prediction().draw(image)) for image in kinds]
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
