"""The learning rate of every group at every step."""

import pytest
import torch

from src.core.errors import ConfigError
from src.optim.schedulers import FlatCosineLR
from src.optim.warmup import LinearWarmup
from src.solver.learning_rates import LearningRates, scale_to_batch
from src.solver.plan import Progress

STEPS = 10
"""Of an epoch."""


def optimizer(**thawing) -> torch.optim.Optimizer:
    groups = [
        {"params": [torch.zeros(1, requires_grad=True)], "lr": 0.1},
        {"params": [torch.zeros(1, requires_grad=True)], "lr": 0.02, **thawing},
    ]
    return torch.optim.SGD(groups)


def at(step: int) -> Progress:
    """Return where a run stands after so many steps."""
    return Progress(step // STEPS, step % STEPS, step)


def rates_at(rates: LearningRates, *steps: int) -> list[list[float]]:
    result = []
    for step in steps:
        rates.set(at(step))
        result.append([group["lr"] for group in rates.optimizer.param_groups])
    return result


def test_without_schedule_and_warm_up_rates_stay_what_they_are():
    assert (
        rates_at(LearningRates(optimizer(), None, None, STEPS), 0, 7, 95)
        == [[0.1, 0.02]] * 3
    )


def test_warm_up_scales_all_groups_alike_over_the_first_steps():
    assert rates_at(
        LearningRates(optimizer(), None, LinearWarmup(4), STEPS), 0, 1, 3, 4
    ) == [
        pytest.approx([0.025, 0.005]),
        pytest.approx([0.05, 0.01]),
        pytest.approx([0.1, 0.02]),
        pytest.approx([0.1, 0.02]),
    ]


def test_what_thaws_warms_up_from_its_first_step_on_while_the_others_go_on():
    rates = LearningRates(optimizer(thaw_epoch=2), None, LinearWarmup(4), STEPS)
    assert rates_at(rates, 20, 21, 23, 24) == [
        pytest.approx([0.1, 0.005]),
        pytest.approx([0.1, 0.01]),
        pytest.approx([0.1, 0.02]),
        pytest.approx([0.1, 0.02]),
    ]


def test_schedule_and_warm_up_multiply():
    made = optimizer(thaw_epoch=2)
    rates = LearningRates(
        made,
        FlatCosineLR(made, flat_epochs=2, end_epoch=4, lr_gamma=0.0),
        LinearWarmup(20),
        STEPS,
    )
    assert rates_at(rates, 29)[0] == pytest.approx(
        [
            rate * factor
            for rate, factor in zip(rates.scheduled(at(29)), (1.0, 0.5))
        ]
    )
    assert rates.scheduled(at(30)) == pytest.approx([0.05, 0.01])


def test_setting_rates_twice_changes_nothing():
    rates = LearningRates(optimizer(), None, LinearWarmup(4), STEPS)
    assert rates_at(rates, 1, 1, 0, 1)[-1] == pytest.approx([0.05, 0.01])


def test_the_highest_rate_is_that_of_any_group():
    rates = LearningRates(optimizer(), None, None, STEPS)
    rates.set(at(0))
    assert rates.highest == 0.1


@pytest.mark.parametrize(
    ("base", "batch", "factor"), [(16, 4, 0.25), (16, 16, 1.0), (32, 64, 2.0)]
)
def test_rates_follow_the_batch_in_proportion(base, batch, factor, caplog):
    made = optimizer()
    with caplog.at_level("INFO"):
        scale_to_batch(made, base, batch, "MultiStepLR")
    assert [group["lr"] for group in made.param_groups] == pytest.approx(
        [0.1 * factor, 0.02 * factor]
    )
    assert f"chosen for a batch of {base}, used with {batch}" in caplog.text


def test_rates_follow_the_square_root_of_the_batch_if_asked_and_the_log_names_the_rule(
    caplog,
):
    made = optimizer()
    with caplog.at_level("INFO"):
        scale_to_batch(made, 32, 8, "FlatCosineLR", "sqrt")
    assert [group["lr"] for group in made.param_groups] == pytest.approx(
        [0.05, 0.01]
    )
    assert (
        "scaled by 0.5: chosen for a batch of 32, used with 8 (lr_scaling: sqrt)"
        in caplog.text
    )


def test_a_schedule_with_rates_of_its_own_is_not_scaled_in_silence():
    with pytest.raises(
        ConfigError, match="OneCycleLR takes its rates from max_lr"
    ):
        scale_to_batch(optimizer(), 16, 4, "OneCycleLR")
