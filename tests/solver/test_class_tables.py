import logging
from pathlib import Path

import pytest
import torch

from src.core import ConfigError, DataError
from src.data.dataset.coco_dataset import CocoDetection
from src.detection.weight_file import WeightFile
from src.solver.class_tables import (
    class_table,
    compare_categories,
    settle_classes,
)
from tests.fixtures.coco_files import sound_coco, write_coco
from tests.fixtures.tiny import tiny_config


def data(
    folder: Path, categories: dict[int, str], name: str = "labels.json"
) -> CocoDetection:
    """A data set with two boxes an image, of the first two of some categories."""
    content = sound_coco()
    content["categories"] = [
        {"id": i, "name": n} for i, n in categories.items()
    ]
    for record in content["annotations"]:
        record["category_id"] = list(categories)[
            (3, 7).index(record["category_id"])
        ]
    return CocoDetection(str(folder), str(write_coco(folder, content, name)))


def file(*classes: tuple[int, str], rows: int | None = None) -> WeightFile:
    meta = (
        {"classes": [{"id": i, "name": n} for i, n in classes]}
        if classes
        else {}
    )
    return WeightFile(
        Path("best.pth"),
        {"decoder.dec_score_head.0.bias": torch.zeros(rows or len(classes))},
        meta,
    )


@pytest.fixture
def cats_and_dogs(tmp_path):
    return data(tmp_path, {3: "cat", 7: "dog"})


def test_the_number_of_classes_follows_from_the_data_if_it_is_left_open(
    cats_and_dogs,
):
    cfg = tiny_config()
    settle_classes(cfg, [cats_and_dogs], None, same_classes=True)
    assert cfg.yaml_cfg["num_classes"] == 2


def test_too_few_classes_name_both_numbers(cats_and_dogs):
    with pytest.raises(
        ConfigError,
        match="num_classes is 1, but .* has 2 categories; set it to 2 or remove it",
    ):
        settle_classes(
            tiny_config(num_classes=1), [cats_and_dogs], None, same_classes=True
        )


def test_more_classes_than_the_data_has_are_logged(cats_and_dogs, caplog):
    with caplog.at_level(logging.INFO, "dfine"):
        settle_classes(
            tiny_config(num_classes=80),
            [cats_and_dogs],
            None,
            same_classes=True,
        )
    assert "num_classes is 80, the data has 2 categories" in caplog.text
    assert cats_and_dogs.label_of_category.tolist() == [0, 1]


def test_a_file_without_a_table_and_with_spare_slots_means_category_ids(
    cats_and_dogs, caplog
):
    with caplog.at_level(logging.INFO, "dfine"):
        settle_classes(
            tiny_config(num_classes=366),
            [cats_and_dogs],
            file(rows=366),
            same_classes=True,
        )
    assert cats_and_dogs.label_of_category.tolist() == [3, 7]
    assert "category ids are used as labels" in caplog.text


def test_a_file_without_a_table_and_without_spare_slots_means_positions(
    cats_and_dogs,
):
    settle_classes(
        tiny_config(num_classes=2),
        [cats_and_dogs],
        file(rows=2),
        same_classes=True,
    )
    assert cats_and_dogs.label_of_category.tolist() == [0, 1]


def test_labels_that_a_checkpoint_was_trained_with_come_back(cats_and_dogs):
    cfg = tiny_config()
    settle_classes(
        cfg,
        [cats_and_dogs],
        file((-1, "(unused 0)"), (7, "dog"), (3, "cat"), (9, "cow")),
        same_classes=True,
    )
    assert cats_and_dogs.label_of_category.tolist() == [2, 1]
    assert cfg.yaml_cfg["num_classes"] == 4


def test_a_new_run_from_a_checkpoint_has_the_datas_own_labels(cats_and_dogs):
    cfg = tiny_config()
    settle_classes(
        cfg,
        [cats_and_dogs],
        file((7, "dog"), (3, "cat"), (9, "cow")),
        same_classes=False,
    )
    assert (
        cats_and_dogs.label_of_category.tolist() == [0, 1]
        and cfg.yaml_cfg["num_classes"] == 2
    )


def test_the_table_has_a_row_for_each_label_and_flags_unused_ones(
    cats_and_dogs,
):
    cats_and_dogs.use_labels([2, 0])
    assert class_table(cats_and_dogs) == [
        {"id": 7, "name": "dog"},
        {"id": -1, "name": "(unused 1)"},
        {"id": 3, "name": "cat"},
    ]


def test_categories_of_training_and_validation_must_agree(
    tmp_path, cats_and_dogs
):
    with pytest.raises(
        DataError,
        match="categories differ between .*: id 7: dog / none; id 8: none / cow",
    ):
        compare_categories(
            cats_and_dogs, data(tmp_path, {3: "cat", 8: "cow"}, "val.json")
        )


def test_the_same_names_under_other_ids_are_matched_by_name(
    tmp_path, cats_and_dogs
):
    val = data(tmp_path, {1: "dog", 9: "cat"}, "val.json")
    compare_categories(cats_and_dogs, val)
    settle_classes(
        tiny_config(), [cats_and_dogs, val], None, same_classes=False
    )
    assert cats_and_dogs.label_names == {0: "cat", 1: "dog"}
    assert val.label_names == {1: "dog", 0: "cat"}


def test_duplicate_names_are_not_matched(tmp_path):
    train, val = (
        data(tmp_path, {i: "cat", i + 1: "cat"}, f"{i}.json") for i in (1, 5)
    )
    with pytest.raises(DataError, match="categories differ"):
        compare_categories(train, val)
