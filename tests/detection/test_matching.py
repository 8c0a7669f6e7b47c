"""Matching of the detections of one image with its objects."""

import numpy as np
import pytest

from src.detection.matching import CROWD, MISSED, iou_xywh, match_image


def objects(*rows) -> np.ndarray:
    return np.array(rows, float).reshape(-1, 6)


def found(*rows) -> np.ndarray:
    return np.array(rows, float).reshape(-1, 6)


def test_an_object_is_found_once_and_by_the_best_score():
    rows = found(
        [0, 0, 10, 10, 0.9, 1], [0, 0, 10, 10, 0.8, 1], [50, 0, 10, 10, 0.7, 1]
    )
    assert match_image(rows, objects([0, 0, 10, 10, 1, 0])).tolist() == [
        0,
        MISSED,
        MISSED,
    ]


def test_a_detection_takes_the_free_object_that_it_overlaps_most():
    truth = objects([0, 0, 10, 10, 1, 0], [2, 0, 10, 10, 1, 0])
    assert match_image(
        found([2, 0, 10, 10, 0.9, 1], [2, 0, 10, 10, 0.8, 1]), truth
    ).tolist() == [1, 0]


def test_another_category_is_found_only_where_categories_do_not_count():
    rows, truth = found([0, 0, 10, 10, 0.9, 2]), objects([0, 0, 10, 10, 1, 0])
    assert match_image(rows, truth).tolist() == [MISSED]
    assert match_image(rows, truth, same_category=False).tolist() == [0]


def test_any_number_of_detections_may_lie_in_a_crowd():
    rows = found(
        [0, 0, 10, 10, 0.9, 1],
        [10, 10, 10, 10, 0.8, 1],
        [95, 0, 20, 10, 0.7, 1],
    )
    assert match_image(rows, objects([0, 0, 100, 100, 1, 1])).tolist() == [
        CROWD,
        CROWD,
        MISSED,
    ]


def test_overlaps_are_those_of_xywh_boxes():
    assert iou_xywh(
        np.array([[0, 0, 10, 10.0]]),
        np.array([[5, 0, 10, 10.0], [20, 20, 5, 5]]),
    ) == pytest.approx(np.array([[1 / 3, 0]]))
