"""Learning rates as functions of the epoch."""

import pytest
import torch
from torch.optim import lr_scheduler

from src.core.build import create
from src.core.errors import ConfigError


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates])


def rates_of_torch(name: str, settings: dict, epochs: int) -> list[list[float]]:
    """Return the rates of torch's own scheduler, stepped once an epoch."""
    stepped = optimizer(0.1, 0.02)
    scheduler = getattr(lr_scheduler, name)(stepped, **settings)
    rates = []
    for _ in range(epochs):
        rates.append([group["lr"] for group in stepped.param_groups])
        stepped.step()
        scheduler.step()
    return rates


CASES = [("MultiStepLR", {"milestones": [3, 7], "gamma": 0.1}), ("MultiStepLR", {"milestones": [500]}), ("CosineAnnealingLR", {"T_max": 12}),
         ("CosineAnnealingLR", {"T_max": 5, "eta_min": 1e-3}), ("OneCycleLR", {"max_lr": 0.3, "total_steps": 12})]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_rates_are_those_of_torchs_scheduler(name, settings):
    schedule = create({"type": name, **settings}, optimizer=optimizer(0.1, 0.02))
    assert [schedule.rates(epoch) for epoch in range(12)] == rates_of_torch(name, settings, 12)


def test_rates_may_be_asked_for_in_any_order():
    schedule = create({"type": "MultiStepLR", "milestones": [3]}, optimizer=optimizer(0.1))
    assert [schedule.rates(epoch)[0] for epoch in (5, 0, 3, 2, 5)] == pytest.approx([0.01, 0.1, 0.01, 0.1, 0.01])


def test_scaling_the_real_rates_does_not_change_the_schedule():
    real = optimizer(0.1)
    schedule = create({"type": "CosineAnnealingLR", "T_max": 10}, optimizer=real)
    real.param_groups[0]["lr"] = 1e-6
    assert schedule.rates(4) == pytest.approx([rates_of_torch("CosineAnnealingLR", {"T_max": 10}, 5)[4][0]])


def test_real_rates_are_left_to_the_caller():
    real = optimizer(0.1)
    create({"type": "MultiStepLR", "milestones": [1]}, optimizer=real).rates(5)
    assert real.param_groups[0]["lr"] == 0.1


def test_schedule_of_a_resumed_optimizer_starts_from_its_initial_rates():
    real = optimizer(1e-5)  # as warm-up or an earlier epoch left it
    real.param_groups[0]["initial_lr"] = 0.1
    assert create({"type": "MultiStepLR", "milestones": [3]}, optimizer=real).rates(0) == [0.1]


def test_epoch_beyond_the_end_of_a_schedule_is_refused():
    schedule = create({"type": "OneCycleLR", "max_lr": 0.3, "total_steps": 3}, optimizer=optimizer(0.1))
    with pytest.raises(ConfigError, match=r"^OneCycleLR has no rate for epoch 4 \(from 0\): Tried to step 4 times"):
        schedule.rates(10)


def test_schedule_that_divides_by_zero_is_refused():
    with pytest.raises(ConfigError, match="^CosineAnnealingLR has no rate for epoch 1"):
        create({"type": "CosineAnnealingLR", "T_max": 0}, optimizer=optimizer(0.1)).rates(1)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="^OneCycleLR cannot be built: You must define either total_steps OR"):
        create({"type": "OneCycleLR", "max_lr": 0.1}, optimizer=optimizer(0.1))
