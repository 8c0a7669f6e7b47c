"""Precision and recall of matched detections, by hand."""

import numpy as np
import pytest

from src.data.evaluation.average_precision import precision_tables
from src.data.evaluation.block_matching import (
    ALL_THRESHOLDS,
    MATCHED,
    ObjectTable,
)


def objects(*categories) -> ObjectTable:
    count = len(categories)
    return ObjectTable(
        np.zeros(count, np.int64),
        np.array(categories, np.int64),
        np.zeros((count, 4)),
        np.full(count, 50.0),  # small
        np.zeros(count, bool),
    )


def detections(*rows) -> np.ndarray:
    """Return matched detections: (category, score, rank, is right)."""
    matched = np.zeros(len(rows), MATCHED)
    for number, (category, score, rank, right) in enumerate(rows):
        matched[number]["category"] = category
        matched[number]["score"] = score
        matched[number]["rank"] = rank
        matched[number]["hits"] = ALL_THRESHOLDS if right else 0
    return matched


def test_precision_is_the_maximum_at_this_recall_or_above():
    tables = precision_tables(
        detections((1, 0.9, 0, False), (1, 0.8, 1, True), (1, 0.7, 2, True)),
        objects(1, 1, 1, 1),
        np.array([1]),
    )
    curve = tables.precision[0, :, 0, 0]
    assert curve[:51] == pytest.approx(2 / 3)
    assert (curve[51:] == 0).all()


def test_recall_counts_the_detections_within_each_limit():
    rows = [(1, 0.9, 0, False), (1, 0.8, 1, True), (1, 0.1, 10, True)]
    tables = precision_tables(
        detections(*rows, (1, 0.05, 100, True)), objects(1, 1), np.array([1])
    )
    assert tables.recall[0, 0, 0].tolist() == [0, 0.5, 1]


def test_categories_without_objects_are_undefined_and_do_not_lower_the_mean():
    tables = precision_tables(
        detections((1, 0.9, 0, True), (2, 0.9, 0, False)),
        objects(1),
        np.array([1, 2]),
    )
    assert tables.metrics()["AP"] == 1
    assert tables.metrics()["AP_large"] is None
    assert tables.average_precision_of_classes() == {1: 1.0, 2: None}


def test_detections_of_unknown_categories_do_not_count():
    tables = precision_tables(
        detections((3, 0.95, 0, False), (1, 0.9, 0, True)),
        objects(1, 3),
        np.array([1]),
    )
    assert tables.metrics()["AP"] == 1


def test_without_detections_precision_and_recall_are_zero():
    tables = precision_tables(detections(), objects(1), np.array([1]))
    assert tables.metrics()["AP"] == tables.metrics()["AR100"] == 0
