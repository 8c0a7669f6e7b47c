"""Settings that contradict each other are refused before anything is read."""

import pytest

from src.core import ConfigError
from src.inference.predict_source import open_job, predict_source


def test_an_empty_batch_is_never_requested(detector, val_images, tmp_path):
    with pytest.raises(ConfigError, match="--frames is 0, expected at least 1"):
        predict_source(detector, str(val_images[0]), tmp_path, frames=0)


def test_a_list_of_images_has_no_meaning_for_a_camera(tmp_path):
    with pytest.raises(ConfigError, match="--annotations selects image files"):
        open_job("camera:0", tmp_path, annotations=tmp_path / "labels.json")
