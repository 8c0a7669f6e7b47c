"""Labels stay inside the picture and apart from each other."""

import itertools

import numpy as np

from src.detection.label_places import place_labels


def overlap(one: np.ndarray, other: np.ndarray, size: np.ndarray) -> bool:
    return bool((np.abs(one - other) < size).all())


def test_a_label_stands_above_its_box():
    places = place_labels(
        np.array([[50, 60, 90, 90]]), np.array([[30, 10]]), 200, 200
    )
    assert places.tolist() == [[50, 50]]


def test_a_label_at_the_upper_edge_stands_inside():
    places = place_labels(
        np.array([[50, 0, 90, 90]]), np.array([[30, 10]]), 200, 200
    )
    assert places.tolist() == [[50, 0]]


def test_a_label_at_the_right_edge_is_moved_to_the_left():
    places = place_labels(
        np.array([[190, 60, 200, 90]]), np.array([[30, 10]]), 200, 200
    )
    assert places.tolist() == [[170, 50]]


def test_labels_of_boxes_in_the_same_place_do_not_cover_each_other():
    size = np.array([30, 10])
    boxes = np.array([[50, 60, 130, 130]] * 6)
    places = place_labels(boxes, np.array([size] * 6), 200, 200)
    for one, other in itertools.combinations(places, 2):
        assert not overlap(one, other, size)


def test_labels_stay_inside_a_crowded_picture():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 300, (150, 2))
    boxes = np.concatenate([corners, corners + 20], 1)
    sizes = rng.integers(10, 60, (150, 2))
    places = place_labels(boxes, sizes, 320, 320)
    assert (places >= 0).all() and (places + sizes <= 320).all()


def test_a_label_wider_than_the_picture_begins_at_the_edge():
    places = place_labels(
        np.array([[5, 5, 9, 9]]), np.array([[500, 10]]), 100, 100
    )
    assert places[0, 0] == 0


def test_without_boxes_there_are_no_places():
    places = place_labels(
        np.zeros((0, 4), int), np.zeros((0, 2), int), 100, 100
    )
    assert places.shape == (0, 2)
