"""The speeds of the loader and of the training steps, and the estimate of a run."""

import pytest
import torch

from src.runtime.checks import Skipped
from src.solver.configuration_trial import Trial
from src.solver.speed_checks import check_loader, check_run
from tests.fixtures.commands import write_tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def trial(tmp_path, tiny_data):
    path = write_tiny_config(tmp_path, tiny_data)
    return Trial(path, {}, CPU, None, ranks=2)


def test_the_loader_gives_its_speed_and_the_size_of_the_data(trial):
    found = check_loader(trial)
    assert found.numbers["images"] == 24 and found.numbers["classes"] == 4
    assert 0 < found.numbers["mean_objects"] <= found.numbers["most_objects"]
    assert found.numbers["images_per_second"] > 0


def test_a_run_is_estimated_from_all_measurements(trial):
    data = {"images": 240, "images_per_second": 1.0}
    memory = {"estimated_images": 9}
    found = check_run(trial, data, memory, {"images_per_second": 4.0})
    # two ranks load two images per second, without workers in between the steps
    assert found.numbers["images_per_second"] == pytest.approx(4 / 3)
    assert "this data (240 images), 2 epochs: about 6 min" in found.text
    assert "about 9 would fit too" in found.text
    with pytest.raises(Skipped, match="speed is not known"):
        check_run(trial, data, memory, {})
