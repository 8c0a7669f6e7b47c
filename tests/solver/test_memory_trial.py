"""The memory trial of the largest step."""

import copy

import pytest
import torch

from src.core.errors import ResourceError
from src.solver import memory_trial
from src.solver.memory_trial import rehearse_largest_step, try_memory
from src.solver.numerics import NumericsGuard
from src.solver.phases import Phases
from src.solver.training_step import TrainStep
from tests.fixtures.tiny import tiny_config


@pytest.fixture
def step() -> TrainStep:
    torch.manual_seed(0)
    cfg = tiny_config(num_classes=4)
    model = cfg.model.train()
    return TrainStep(
        model=model,
        criterion=cfg.criterion.train(),
        optimizer=cfg.optimizer,
        ema=None,
        scaler=None,
        device=torch.device("cpu"),
        amp_dtype=None,
        clip_max_norm=0.1,
        guard=NumericsGuard(10),
    )


def test_a_rehearsal_changes_nothing(step):
    before = copy.deepcopy(step.model.state_dict())
    random_state = torch.random.get_rng_state()
    rehearse_largest_step(step, 2, (96, 96), 30, 4)
    assert all(
        torch.equal(value, before[name])
        for name, value in step.model.state_dict().items()
    )
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert (
        all(p.grad is None for p in step.model.parameters())
        and not step.optimizer.state
    )


def test_the_peak_is_logged_with_the_batch_it_was_measured_for(step, caplog):
    with caplog.at_level("INFO"):
        assert rehearse_largest_step(step, 2, (64, 96), 30, 4) > 0
    assert (
        "the largest batch, 2 images of 64 x 96 pixels with 30 objects each, takes"
        in caplog.text
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_ends_with_what_helps(
    step, monkeypatch, error
):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr(step.model, "forward", full)
    with pytest.raises(
        ResourceError,
        match="the largest batch of this run does not fit: 2 image",
    ) as caught:
        rehearse_largest_step(step, 2, (64, 64), 3, 4)
    assert "gradient_checkpointing" in str(
        caught.value
    ) and "total_batch_size" in str(caught.value)


@pytest.mark.parametrize("resumed", [False, True])
def test_moments_that_the_optimizer_does_not_have_yet_are_added_to_the_peak(
    step, monkeypatch, resumed
):
    """A resumed run has them already, so they are included in the measurement."""
    if resumed:
        for parameter in step.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        step.optimizer.step()
        step.optimizer.zero_grad()
    monkeypatch.setattr(memory_trial, "peak_memory", lambda: 10**9)
    trained = sum(
        p.numel()
        for group in step.optimizer.param_groups
        for p in group["params"]
    )
    moments = 0 if resumed else 2 * 4 * trained
    assert rehearse_largest_step(step, 1, (64, 64), 3, 4) == pytest.approx(
        (10**9 + moments) / 1e9
    )


def test_the_trial_is_made_in_the_last_phase_and_leaves_the_model_in_that_of_its_epoch(
    step, monkeypatch
):
    phases, epochs = Phases(step), []
    monkeypatch.setattr(phases, "apply", epochs.append)
    monkeypatch.setattr(
        step, "rehearse", lambda batch: epochs.append("rehearsed")
    )
    size = {"images": 1, "size_hw": (64, 64), "objects": 3, "num_classes": 4}
    try_memory(step, phases, **size, epoch=2, last_epoch=9)
    assert epochs == [9, "rehearsed", 2]
