"""Calibration images come from a data set, a folder, or the data of the training."""

import shutil

import pytest

from src.core import ConfigError
from src.core.errors import DataError
from src.inference.calibration import calibration_data


def test_a_data_set_gives_training_images_and_validation_labels(
    detector, tiny_data
):
    images, dataset = calibration_data(detector, tiny_data.folder, 3)
    assert [image.name[:6] for image in images] == ["train_"] * 3
    assert dataset.ann_file.endswith("val.json")


def test_a_folder_of_images_calibrates_and_the_checkpoint_names_the_labels(
    detector, val_images, tiny_data, tmp_path, monkeypatch
):
    for image in val_images[:2]:
        shutil.copy(image, tmp_path)
    opened = []

    def labelled(detector, *given):
        opened.append(given)
        return [1, 2, 3]

    monkeypatch.setattr(
        "src.inference.calibration.open_labelled_images", labelled
    )
    images, dataset = calibration_data(detector, tmp_path, 10)
    assert [image.name for image in images] == [
        image.name for image in val_images[:2]
    ]
    assert opened == [()] and len(dataset) == 3


def test_data_of_the_training_that_is_not_here_is_reported(detector):
    with pytest.raises(ConfigError, match="calibrat"):
        calibration_data(detector, None, 4)


def test_a_path_that_does_not_exist_is_refused(detector, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        calibration_data(detector, tmp_path / "none", 4)


def test_a_file_that_is_no_data_set_is_refused(detector, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("notes")
    with pytest.raises(DataError):
        calibration_data(detector, path, 4)


def test_no_images_are_refused(detector, tmp_path):
    with pytest.raises(ConfigError, match="--calibration-count is 0"):
        calibration_data(detector, tmp_path, 0)
