"""Losses are compared between devices, and between float32 and mixed precision."""

import dataclasses

import pytest
import torch

from src.core.errors import NumericsError
from src.runtime.checks import Skipped
from src.solver import precision_checks
from src.solver.configuration_trial import Trial
from src.solver.precision_checks import check_float32, check_half, step_losses
from tests.fixtures.commands import write_tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def trial(tmp_path, tiny_data):
    path = write_tiny_config(tmp_path, tiny_data)
    return Trial(path, {}, CPU, None, ranks=2)


def test_two_steps_repeat_and_change_the_loss(trial):
    first, _ = step_losses(trial, CPU, None, {})
    again, _ = step_losses(trial, CPU, None, {})
    assert first == again and first[0] != first[1]


def test_other_losses_on_the_gpu_are_a_failure(trial, monkeypatch):
    gpu = dataclasses.replace(trial, device=torch.device("cuda", 0))
    losses = {"cpu": [20.0, 19.0], "cuda": [20.1, 19.0]}
    monkeypatch.setattr(
        precision_checks,
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
        precision_checks, "step_losses", lambda *arguments: ([20.0, 19.0], 0.1)
    )
    assert check_half(trial, torch.bfloat16, {}, [20.1, 3.0]).status == "ok"
    found = check_half(trial, torch.bfloat16, {}, [30.0, 19.0])
    assert found.status == "warning"
    with pytest.raises(Skipped, match="fp16 only on GPUs"):
        check_half(trial, torch.float16, {}, None)
