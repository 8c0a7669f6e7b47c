"""`--data` becomes settings that any configuration accepts."""

import pytest

from src.core.errors import DataError
from src.data.preparation.run_dataset import merged, with_dataset
from tests.fixtures.label_formats import yolo_lines
from tests.fixtures.layouts import coco_pair, yolo_roboflow


def test_files_and_folders_of_both_loaders_are_set(tmp_path):
    coco_pair(tmp_path)
    settings = with_dataset({"epochs": 3}, tmp_path)
    for part in ("train", "val"):
        assert settings[f"{part}_dataloader"]["dataset"] == {
            "img_folder": str(tmp_path / "images"),
            "ann_file": str(tmp_path / f"{part}.json"),
        }
    assert settings["epochs"] == 3
    assert settings["num_classes"] is None
    assert settings["remap_mscoco_category"] is False


def test_without_data_settings_stay_as_they_are():
    given = {"train_dataloader": {"dataset": {"ann_file": "a.json"}}}
    assert with_dataset(given, None) == given


def test_given_settings_win_except_for_files_of_the_data():
    settings = {
        "num_classes": None,
        "train_dataloader": {"dataset": {"ann_file": "found.json"}},
    }
    given = {
        "num_classes": 7,
        "train_dataloader": {
            "total_batch_size": 4,
            "dataset": {"ann_file": "given.json", "bit_depth": 12},
        },
    }
    assert merged(settings, given) == {
        "num_classes": 7,
        "train_dataloader": {
            "total_batch_size": 4,
            "dataset": {"ann_file": "found.json", "bit_depth": 12},
        },
    }


def test_links_are_followed_in_the_run_too(tmp_path):
    coco_pair(tmp_path)
    settings = with_dataset({}, tmp_path, follow_links=True)
    assert settings["val_dataloader"]["dataset"]["follow_links"] is True


def test_strict_refuses_labels_that_are_changed(tmp_path):
    yolo_roboflow(tmp_path)
    (tmp_path / "train/labels/gone.txt").write_text(yolo_lines("a"))
    assert with_dataset({}, tmp_path)["num_classes"] is None
    with pytest.raises(DataError, match="left out: 1; --strict accepts no"):
        with_dataset({"strict": True}, tmp_path)
