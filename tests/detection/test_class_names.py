"""Names of labels, and labels of categories."""

from pathlib import Path

import pytest

from src.core import CheckpointError
from src.core.coco_categories import COCO_NAMES
from src.detection.class_names import (
    find_labels,
    known_names,
    match_names,
    named_classes,
)


def known(*classes: tuple[int, str]) -> list[dict]:
    return [{"id": i, "name": n} for i, n in classes]


def labels_in_best(
    classes: list[dict], categories: dict[int, str]
) -> list[int]:
    return find_labels(
        list(categories.items()),
        classes,
        ann_file="labels.json",
        weights=Path("best.pth"),
    )


def test_classes_that_a_checkpoint_does_not_know_are_named():
    with pytest.raises(
        CheckpointError,
        match=r"labels\.json has classes that best\.pth was not trained with: dog \(id 7\); "
        r"its classes are cat, cow; use -t",
    ):
        labels_in_best(known((3, "cat"), (9, "cow")), {3: "cat", 7: "dog"})


def test_duplicate_names_are_distinguished_by_id():
    assert labels_in_best(
        known((3, "part"), (7, "part")), {3: "part", 7: "part"}
    ) == [
        0,
        1,
    ]


def test_eighty_unnamed_classes_are_cocos():
    classes = named_classes(None, 80)
    assert classes[0] == {"id": 1, "name": "person"} and classes[79] == {
        "id": 90,
        "name": "toothbrush",
    }


def test_rows_of_the_head_beyond_the_classes_have_a_name_too():
    assert named_classes([{"id": 5, "name": "a"}], 3)[1:] == [
        {"id": -1, "name": "(unused 1)"},
        {"id": -1, "name": "(unused 2)"},
    ]


def test_a_repeated_name_with_an_unknown_id_has_the_first_label_of_that_name():
    classes = known((1, "cat"), (3, "part"), (7, "part"))
    assert labels_in_best(classes, {9: "part", 1: "cat"}) == [1, 0]


def test_labels_keep_the_order_of_a_checkpoint_and_not_of_names_or_ids():
    classes = known((9, "zebra"), (2, "mouse"), (5, "ant"))
    assert named_classes(classes, 3) == classes
    assert labels_in_best(classes, {2: "mouse", 5: "ant", 9: "zebra"}) == [
        1,
        2,
        0,
    ]


def test_a_published_head_of_objects365_has_category_ids_as_labels():
    classes = named_classes(None, 366)
    assert classes[0] == {"id": -1, "name": "(unused 0)"}
    assert classes[1] == {"id": 1, "name": "person"}
    assert classes[2] == {"id": 2, "name": "class 2"}
    assert [entry["id"] for entry in classes[1:]] == list(range(1, 366))
    assert {entry["name"] for entry in classes} >= set(COCO_NAMES)


def test_names_are_matched_exactly_before_another_case():
    known = ["dog", "Cat", "cat"]
    assert match_names(["cat", "Dog", "cow", "Cat"], known) == [2, 0, None, 1]


def test_objects365_classes_have_the_names_of_coco_where_coco_has_them():
    classes = [{"id": 365 - n, "name": f"thing {n}"} for n in range(365)]
    names = known_names(classes)
    assert set(COCO_NAMES) <= set(names)
    assert known_names([{"id": 1, "name": "thing"}]) == ["thing"]
