"""The memory of two small batches shows whether the configured batch fits."""

import dataclasses

import pytest
import torch

from src.core.errors import ResourceError
from src.solver import memory_check
from src.solver.configuration_trial import Trial
from src.solver.memory_check import check_memory
from tests.fixtures.commands import write_tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def trial(tmp_path, tiny_data):
    path = write_tiny_config(tmp_path, tiny_data)
    return Trial(path, {}, CPU, None, ranks=2)


def test_a_batch_that_does_not_fit_on_a_gpu_keeps_the_estimate(
    trial, monkeypatch
):
    peaks = {1: 3.0, 2: 4.0}

    def peak(trial, built, data, images):
        if images not in peaks:
            raise ResourceError("the largest batch of this run does not fit")
        return peaks[images]

    monkeypatch.setattr(memory_check, "_peak", peak)
    monkeypatch.setattr(memory_check, "build_trial", lambda *arguments: None)
    monkeypatch.setattr(memory_check, "_capacity", lambda device: 8.0)
    gpu = Trial(
        trial.path,
        {"train_dataloader": {"total_batch_size": 16}},
        torch.device("cuda", 0),
        None,
        ranks=1,
    )
    found = check_memory(gpu, {})
    assert (found.status, found.code) == ("failed", 6)
    assert found.numbers["estimated_images"] == 5
    assert found.numbers["images_that_fit"] == 5
    cpu = dataclasses.replace(gpu, device=CPU)
    assert check_memory(cpu, {}).status == "warning"
    del peaks[2]
    found = check_memory(gpu, {})
    assert (found.status, found.numbers["images_that_fit"]) == ("failed", 1)
    del peaks[1]
    with pytest.raises(ResourceError):
        check_memory(gpu, {})
