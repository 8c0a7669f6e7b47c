"""COCO's matching: each rule in a case that is small enough to check by hand."""

import numpy as np
import pytest

from src.data.evaluation import block_matching
from src.data.evaluation.block_matching import (
    ALL_THRESHOLDS,
    HIT,
    match_detections,
    object_table,
)
from src.data.evaluation.collected_detections import DetectionArrays
from src.detection.matching import CROWD, MISSED

AT_50 = 1
"""Bit of the lowest threshold."""


def truth(*objects, images=1) -> dict:
    """Return ground truth; objects: (image, category, x, y, width, height, is a crowd)."""
    annotations = []
    for image, category, x, y, width, height, crowd in objects:
        annotations.append(
            {
                "image_id": image,
                "category_id": category,
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": crowd,
            }
        )
    return {
        "images": [{"id": number} for number in range(images)],
        "annotations": annotations,
    }


def matched(coco_gt, *detections):
    """Match detections: (image, category, x, y, width, height, score)."""
    number_of = {
        image["id"]: number for number, image in enumerate(coco_gt["images"])
    }
    rows = sorted(detections, key=lambda row: row[0])
    values = []
    for _, _, x, y, width, height, score in rows:
        values.append([x, y, x + width, y + height, score])
    images, counts = np.unique([row[0] for row in rows], return_counts=True)
    arrays = DetectionArrays(
        images,
        counts,
        np.array(values, float).reshape(-1, 5),
        np.array([row[1] for row in rows], np.int64),
    )
    return match_detections(arrays, object_table(coco_gt, number_of), number_of)


def test_each_object_is_found_once_by_the_highest_score():
    found = matched(
        truth((0, 1, 0, 0, 10, 10, 0)),
        (0, 1, 0, 0, 10, 10, 0.5),
        (0, 1, 0, 0, 10, 10, 0.9),
    )
    assert found["score"].tolist() == [0.9, 0.5]
    assert found["hits"][:, 0].tolist() == [ALL_THRESHOLDS, 0]
    assert found["found"].tolist() == [HIT, MISSED]
    assert found["rank"].tolist() == [0, 1]


def test_a_detection_hits_at_the_thresholds_that_its_iou_reaches():
    found = matched(truth((0, 1, 0, 0, 10, 10, 0)), (0, 1, 0, 0, 10, 6, 0.5))
    assert found["hits"][0, 0] == 0b111  # 0.50, 0.55 and 0.60


def test_what_one_detection_cannot_take_at_a_threshold_another_takes():
    found = matched(
        truth((0, 1, 0, 0, 10, 10, 0)),
        (0, 1, 0, 0, 10, 6, 0.9),
        (0, 1, 0, 0, 10, 10, 0.5),
    )
    assert found["hits"][:, 0].tolist() == [0b111, ALL_THRESHOLDS - 0b111]


def test_a_detection_takes_its_second_choice_if_the_first_is_taken():
    objects = truth((0, 1, 0, 0, 10, 10, 0), (0, 1, 0, 0, 10, 7, 0))
    found = matched(
        objects, (0, 1, 0, 0, 10, 10, 0.9), (0, 1, 0, 0, 10, 9, 0.5)
    )
    assert found["hits"][1, 0] & AT_50


def test_categories_and_images_are_separate():
    objects = truth((0, 1, 0, 0, 10, 10, 0), images=2)
    found = matched(
        objects, (0, 2, 0, 0, 10, 10, 0.9), (1, 1, 0, 0, 10, 10, 0.9)
    )
    assert not found["hits"].any()
    assert (found["found"] == MISSED).all()


def test_any_number_of_detections_in_a_crowd_is_neither_right_nor_wrong():
    objects = truth((0, 1, 0, 0, 100, 100, 1))
    found = matched(
        objects, (0, 1, 0, 0, 10, 10, 0.9), (0, 1, 50, 0, 10, 10, 0.5)
    )
    assert not found["hits"].any()
    assert found["ignored"][:, 0].tolist() == [ALL_THRESHOLDS] * 2
    assert found["found"].tolist() == [CROWD, CROWD]


def test_an_object_comes_before_a_crowd_that_overlaps_more():
    objects = truth((0, 1, 0, 0, 100, 100, 1), (0, 1, 0, 0, 10, 10, 0))
    found = matched(objects, (0, 1, 0, 0, 10, 8, 0.9))
    assert found["hits"][0, 0] & AT_50
    assert found["found"].tolist() == [HIT]


def test_objects_of_other_areas_are_ignored_and_so_are_their_detections():
    objects = truth((0, 1, 0, 0, 40, 40, 0))
    found = matched(objects, (0, 1, 0, 0, 40, 40, 0.9))
    everything, small, medium, large = found["hits"][0]
    assert (small, large) == (0, 0)
    assert everything == medium == ALL_THRESHOLDS
    assert found["ignored"][0].tolist() == [
        0,
        ALL_THRESHOLDS,
        0,
        ALL_THRESHOLDS,
    ]


def test_detections_without_an_object_count_only_in_their_range_of_areas():
    found = matched(truth(), (0, 1, 0, 0, 200, 200, 0.9))
    assert found["ignored"][0].tolist() == [
        0,
        ALL_THRESHOLDS,
        ALL_THRESHOLDS,
        0,
    ]


def test_images_that_are_not_in_the_ground_truth_are_left_out():
    found = matched(truth(), (0, 1, 0, 0, 9, 9, 0.5), (7, 1, 0, 0, 9, 9, 0.5))
    assert found["image"].tolist() == [0]


@pytest.mark.parametrize("candidates", [1, 7, 100])
def test_the_size_of_blocks_changes_nothing(monkeypatch, candidates):
    rng = np.random.default_rng(0)
    objects = []
    detections = []
    for image in range(20):
        for _ in range(5):
            box = rng.integers(0, 20, 4) + [0, 0, 10, 10]
            objects.append((image, int(rng.integers(2)), *box.tolist(), 0))
            box = box + rng.integers(-2, 3, 4)
            category = int(rng.integers(2))
            detections.append((image, category, *box.tolist(), rng.random()))
    coco_gt = truth(*objects, images=20)
    expected = matched(coco_gt, *detections)
    assert expected["hits"].any()
    monkeypatch.setattr(block_matching, "CANDIDATES_OF_BLOCK", candidates)
    assert (matched(coco_gt, *detections) == expected).all()
