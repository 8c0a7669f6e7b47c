import logging
from pathlib import Path

import pytest
import torch

from src.core import ConfigError
from src.core.coco_categories import COCO_NAMES
from src.detection.weight_file import WeightFile
from src.nn.teacher_classes import ClassRows, class_names_of, matched_rows

CLASSES = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]


def file_of(rows, classes=None):
    """Return a file whose class head has so many rows."""
    weights = {"decoder.dec_score_head.0.bias": torch.zeros(rows)}
    meta = {} if classes is None else {"classes": classes}
    return WeightFile(Path("teacher.pth"), weights, meta)


def test_the_names_of_a_file_are_those_in_its_notes():
    assert class_names_of(file_of(2, CLASSES)) == ["cat", "dog"]
    assert class_names_of(file_of(3, CLASSES)) == ["cat", "dog", "(unused 2)"]


def test_without_notes_only_the_classes_of_coco_and_objects365_have_names():
    assert class_names_of(file_of(80)) == list(COCO_NAMES)
    assert set(COCO_NAMES) <= set(class_names_of(file_of(366)))
    assert class_names_of(file_of(3)) is None


def test_rows_follow_the_order_of_the_student():
    rows = matched_rows(["dog", "cow", "cat"], 4, ["cat", "dog"], 2, "t")
    assert rows == [1, None, 0, None]


def test_without_names_of_the_data_rows_are_equal_as_far_as_both_have_them():
    assert matched_rows(None, 3, ["cat", "dog"], 2, "t") == [0, 1, None]
    assert matched_rows(None, 2, None, 3, "t") == [0, 1]


def test_equal_classes_are_not_worth_a_line(caplog):
    with caplog.at_level(logging.INFO, "dfine"):
        matched_rows(["cat", "dog"], 2, ["cat", "dog"], 2, "t")
    assert not caplog.messages


def test_a_teacher_without_names_and_with_another_number_of_classes_is_refused():
    with pytest.raises(ConfigError) as error:
        matched_rows(list("abcdefg"), 7, None, 3, "t.pth")
    assert str(error.value) == (
        "distillation.teacher: t.pth has 3 classes without names, none of which is a class of the data, "
        "which has 7 classes (a, b, c, d, e, ...); use a teacher with these classes, or set "
        "distillation.decoder_weight=~"
    )


def test_probabilities_of_classes_that_the_teacher_lacks_are_zero():
    chosen = ClassRows.of([1, None, 0], 2)
    found = chosen.select(torch.tensor([[[0.25, 0.75]]]))
    assert found.tolist() == [[[0.75, 0.0, 0.25]]]


def test_equal_rows_need_no_work():
    probabilities = torch.rand(1, 2, 3)
    chosen = ClassRows.of([0, 1, 2], 3)
    assert chosen.known is None
    assert chosen.select(probabilities) is probabilities
