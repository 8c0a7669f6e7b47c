"""Checks of a configuration on a machine."""

import dataclasses

import pytest
import torch

from src.core.errors import NumericsError, ResourceError
from src.runtime.checks import Skipped
from src.solver import step_checks
from src.solver.step_checks import (
    Trial,
    check_float32,
    check_half,
    check_loader,
    check_memory,
    check_run,
    step_losses,
)
from tests.fixtures.commands import write_tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def trial(tmp_path, tiny_data):
    path = write_tiny_config(tmp_path, tiny_data)
    return Trial(path, {}, CPU, None, ranks=2)


def test_a_trial_has_the_batch_of_one_rank_and_its_needs(trial):
    assert trial.images == 2 and trial.workers == 0
    workers = {"train_dataloader": {"num_workers": 3}}
    busy = dataclasses.replace(trial, overrides=workers)
    assert busy.waiting_batches == 6
    assert busy.sizes() == ((64, 64), (64, 64))
    assert busy.batch_bytes() == 2 * 3 * 64 * 64 * 4
    several = {
        "eval_spatial_size": [160, 320],
        "train_dataloader": {
            "collate_fn": {
                "base_size": 160,
                "base_size_repeat": 1,
                "stop_epoch": 0.9,
            }
        },
    }
    usual, largest = dataclasses.replace(trial, overrides=several).sizes()
    assert usual == (160, 320) and largest[0] > 160 and largest[1] > 320


def test_the_loader_gives_its_speed_and_the_size_of_the_data(trial):
    found = check_loader(trial)
    assert found.numbers["images"] == 24 and found.numbers["classes"] == 4
    assert 0 < found.numbers["mean_objects"] <= found.numbers["most_objects"]
    assert found.numbers["images_per_second"] > 0


def test_two_steps_repeat_and_change_the_loss(trial):
    first, _ = step_losses(trial, CPU, None, {})
    again, _ = step_losses(trial, CPU, None, {})
    assert first == again and first[0] != first[1]


def test_other_losses_on_the_gpu_are_a_failure(trial, monkeypatch):
    gpu = dataclasses.replace(trial, device=torch.device("cuda", 0))
    losses = {"cpu": [20.0, 19.0], "cuda": [20.1, 19.0]}
    monkeypatch.setattr(
        step_checks,
        "step_losses",
        lambda trial, device, dtype, data: (losses[device.type], 0.1),
    )
    found = check_float32(gpu, {})
    assert found.numbers["difference"] == pytest.approx(0.005)
    losses["cuda"] = [20.0, 18.0]
    with pytest.raises(NumericsError, match="other losses than the CPU"):
        check_float32(gpu, {})


def test_mixed_precision_far_from_float32_is_a_warning(trial, monkeypatch):
    monkeypatch.setattr(
        step_checks, "step_losses", lambda *arguments: ([20.0, 19.0], 0.1)
    )
    assert check_half(trial, torch.bfloat16, {}, [20.1, 3.0]).status == "ok"
    found = check_half(trial, torch.bfloat16, {}, [30.0, 19.0])
    assert found.status == "warning"
    with pytest.raises(Skipped, match="fp16 only on GPUs"):
        check_half(trial, torch.float16, {}, None)


def test_a_batch_that_does_not_fit_on_a_gpu_keeps_the_estimate(
    trial, monkeypatch
):
    peaks = {1: 3.0, 2: 4.0}

    def peak(trial, built, data, images):
        if images not in peaks:
            raise ResourceError("the largest batch of this run does not fit")
        return peaks[images]

    monkeypatch.setattr(step_checks, "_peak", peak)
    monkeypatch.setattr(step_checks, "build_trial", lambda *arguments: None)
    monkeypatch.setattr(step_checks, "_capacity", lambda device: 8.0)
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
