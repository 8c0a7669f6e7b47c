"""The rehearsal of the largest step."""

import copy

import pytest
import torch

from src.core.errors import ResourceError
from src.solver.memory_trial import rehearse_largest_step
from src.solver.numerics import NumericsGuard
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
    before, chance = copy.deepcopy(step.model.state_dict()), torch.random.get_rng_state()
    rehearse_largest_step(step, 2, (96, 96), 30, 4)
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert all(p.grad is None for p in step.model.parameters()) and not step.optimizer.state


def test_the_peak_is_told_with_what_it_was_measured_for(step, caplog):
    with caplog.at_level("INFO"):
        assert rehearse_largest_step(step, 2, (64, 96), 30, 4) > 0
    assert "the largest batch, 2 image(s) of 64 x 96 pixels with 30 objects each, takes" in caplog.text


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), MemoryError()]
)
def test_a_batch_that_does_not_fit_ends_with_what_helps(step, monkeypatch, error):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr(step.model, "forward", full)
    with pytest.raises(ResourceError, match="the largest batch of this run does not fit: 2 image") as caught:
        rehearse_largest_step(step, 2, (64, 64), 3, 4)
    assert "gradient_checkpointing" in str(caught.value) and "total_batch_size" in str(caught.value)
