"""Detections of one image and their operations."""

import json
import sys
from dataclasses import replace

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


def many_classes(count: int) -> Prediction:
    labels = np.arange(count)
    return Prediction(
        np.zeros((count, 4), np.float32),
        np.full(count, 0.5, np.float32),
        labels,
        labels,
        [f"class {label}" for label in labels],
        (640, 480),
    )


def test_iterating_gives_the_detections_with_box_score_label_and_name():
    first, second = prediction()
    assert first == ((10, 20, 40, 60), pytest.approx(0.9), 1, "dog")
    assert (second.label, second.name) == (0, "cat")
    assert second.box == (-3, -2, 50, 90)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (prediction(), "2 detections: 1 dog, 1 cat (48 x 80)"),
        (prediction().select([0]), "1 detection: 1 dog (48 x 80)"),
        (
            prediction().select([0, 1, 1]),
            "3 detections: 2 cat, 1 dog (48 x 80)",
        ),
        (prediction().select([]), "no detections (48 x 80)"),
        (Prediction.failed("a.jpg is empty"), "no prediction: a.jpg is empty"),
    ],
    ids=["two", "one", "most frequent first", "none", "failed"],
)
def test_the_representation_counts_the_classes(found, text):
    assert repr(found) == text


def test_the_representation_of_many_classes_is_short():
    text = repr(many_classes(80))
    assert text.startswith("80 detections: 1 class 0, 1 class 1, ")
    assert text.endswith("1 class 7, 72 more classes (640 x 480)")


def test_json_holds_the_source_and_every_detection():
    content = json.loads(prediction("images/a.jpg").to_json())
    assert content["source"] == "images/a.jpg"
    assert (content["width"], content["height"]) == (48, 80)
    assert content["detections"][0] == {
        "box": [10.0, 20.0, 40.0, 60.0],
        "score": 0.9,
        "label": 1,
        "category_id": 7,
        "name": "dog",
    }
    assert "error" not in content


def test_json_of_a_failed_prediction_has_the_reason():
    failed = Prediction.failed("a.jpg is empty", source="a.jpg")
    assert json.loads(failed.to_json()) == failed.to_dict()
    assert failed.to_dict()["error"] == "a.jpg is empty"


def test_json_keeps_names_in_other_scripts_readable():
    named = replace(prediction().select([0]), names=["猫"])
    assert "猫" in named.to_json(indent=2)


def test_yolo_lines_are_fractions_of_the_image_and_stay_within_it():
    first, second = prediction().to_yolo(scores=True).splitlines()
    values = [float(value) for value in first.split()]
    assert values == pytest.approx([1, 25 / 48, 0.5, 30 / 48, 0.5, 0.9])
    # the box that extends beyond the image becomes the whole image
    assert second == "0 0.500000 0.500000 1.000000 1.000000 0.500000"


def test_yolo_lines_leave_out_boxes_without_area():
    outside = replace(
        prediction(), boxes=np.float32([[60, 0, 70, 9], [1, 2, 3, 4]])
    )
    assert outside.to_yolo().splitlines() == [
        "0 0.041667 0.037500 0.041667 0.025000"
    ]


def test_crops_are_cut_from_the_file_and_clipped_to_the_image(tmp_path):
    picture = Image.new("RGB", (48, 80))
    picture.paste((255, 0, 0), (10, 20, 40, 60))
    picture.save(tmp_path / "image.png")
    first, second = prediction(str(tmp_path / "image.png")).crops()
    assert first.size == (30, 40)
    assert first.getcolors() == [(30 * 40, (255, 0, 0))]
    assert second.size == (48, 80)


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ([1.2, 2.8, 4.1, 5.0], (4, 3)),
        ([5, 5, 5, 5], (1, 1)),
        ([60, 100, 70, 110], (1, 1)),
        ([-20, -20, -10, -10], (1, 1)),
    ],
    ids=["fractions", "no area", "right of the image", "left of the image"],
)
def test_a_crop_has_whole_pixels_and_at_least_one(box, size):
    found = replace(prediction().select([0]), boxes=np.float32([box]))
    (crop,) = found.crops(np.zeros((80, 48, 3), np.uint8))
    assert crop.size == size


def test_crops_refuse_an_image_of_another_size():
    with pytest.raises(ConfigError, match="40 x 30 pixels.* 48 x 80"):
        prediction().crops(Image.new("RGB", (40, 30)))


@pytest.mark.parametrize("name", ["pandas", "supervision"])
def test_a_missing_package_is_one_sentence(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    convert = {
        "pandas": prediction().to_dataframe,
        "supervision": prediction().to_supervision,
    }[name]
    with pytest.raises(ConfigError, match=f"needs {name}: pip install {name}"):
        convert()


def test_a_table_has_a_row_for_each_detection():
    pytest.importorskip("pandas", reason="pandas is not installed")
    table = prediction().to_dataframe()
    assert table["name"].tolist() == ["dog", "cat"]
    assert table["x_max"].tolist() == [40, 50]
    assert table["category_id"].tolist() == [7, 3]
    assert list(prediction().select([]).to_dataframe()) == list(table)


def test_supervision_gets_boxes_scores_labels_and_names():
    pytest.importorskip("supervision", reason="supervision is not installed")
    found = prediction().to_supervision()
    assert found.xyxy.tolist() == prediction().boxes.tolist()
    assert found.confidence == pytest.approx([0.9, 0.5])
    assert found.class_id.tolist() == [1, 0]
    assert found["class_name"].tolist() == ["dog", "cat"]
    assert len(found[found.confidence > 0.6]) == 1
    assert len(prediction().select([]).to_supervision()) == 0
