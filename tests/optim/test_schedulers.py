"""Learning rates as functions of the epoch."""

import pytest
import torch
from torch.optim import lr_scheduler

from src.core.build import create
from src.core.durations import RunLength
from src.core.errors import ConfigError
from tests.fixtures.lengths import built_for


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [
            {"params": [torch.zeros(1, requires_grad=True)], "lr": rate}
            for rate in rates
        ]
    )


def rates_of_torch(name: str, settings: dict, epochs: int) -> list[list[float]]:
    """Return the rates of torch's own scheduler, stepped once per epoch."""
    stepped = optimizer(0.1, 0.02)
    scheduler = getattr(lr_scheduler, name)(stepped, **settings)
    rates = []
    for _ in range(epochs):
        rates.append([group["lr"] for group in stepped.param_groups])
        stepped.step()
        scheduler.step()
    return rates


CASES = [
    ("MultiStepLR", {"milestones": [3, 7], "gamma": 0.1}),
    ("MultiStepLR", {"milestones": [500]}),
    ("CosineAnnealingLR", {"T_max": 12}),
    ("CosineAnnealingLR", {"T_max": 5, "eta_min": 1e-3}),
    ("OneCycleLR", {"max_lr": [0.3, 0.06], "total_steps": 12}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_rates_are_those_of_torchs_scheduler(name, settings):
    schedule = create(
        {"type": name, **settings}, optimizer=optimizer(0.1, 0.02)
    )
    assert [schedule.rates(epoch) for epoch in range(12)] == rates_of_torch(
        name, settings, 12
    )


def test_one_rate_of_a_schedule_for_groups_of_several_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"^OneCycleLR.max_lr is 0.3 for all 2 parameter groups and would replace their "
        r"own rates \(0.02, 0.1; from optimizer.params, layer_decay, unfreeze_lr_factor\); "
        r"set max_lr to a list of 2 rates",
    ):
        create(
            {"type": "OneCycleLR", "max_lr": 0.3, "total_steps": 12},
            optimizer=optimizer(0.1, 0.02),
        )
    assert create(
        {"type": "OneCycleLR", "max_lr": 0.3, "total_steps": 12},
        optimizer=optimizer(0.1, 0.1),
    ).rates(3) == pytest.approx([0.3, 0.3], rel=0.3)


def test_rates_may_be_requested_in_any_order():
    schedule = create(
        {"type": "MultiStepLR", "milestones": [3]}, optimizer=optimizer(0.1)
    )
    assert [
        schedule.rates(epoch)[0] for epoch in (5, 0, 3, 2, 5)
    ] == pytest.approx([0.01, 0.1, 0.01, 0.1, 0.01])


def test_scaling_the_real_rates_does_not_change_the_schedule():
    real = optimizer(0.1)
    schedule = create(
        {"type": "CosineAnnealingLR", "T_max": 10}, optimizer=real
    )
    real.param_groups[0]["lr"] = 1e-6
    assert schedule.rates(4) == pytest.approx(
        [rates_of_torch("CosineAnnealingLR", {"T_max": 10}, 5)[4][0]]
    )


def test_real_rates_are_left_to_the_caller():
    real = optimizer(0.1)
    create({"type": "MultiStepLR", "milestones": [1]}, optimizer=real).rates(5)
    assert real.param_groups[0]["lr"] == 0.1


def test_schedule_of_a_resumed_optimizer_starts_from_its_initial_rates():
    real = optimizer(1e-5)  # as warm-up or an earlier epoch left it
    real.param_groups[0]["initial_lr"] = 0.1
    assert create(
        {"type": "MultiStepLR", "milestones": [3]}, optimizer=real
    ).rates(0) == [0.1]


def test_epoch_beyond_the_end_of_a_schedule_is_refused():
    schedule = create(
        {"type": "OneCycleLR", "max_lr": 0.3, "total_steps": 3},
        optimizer=optimizer(0.1),
    )
    with pytest.raises(
        ConfigError,
        match=r"^OneCycleLR has no rate for epoch 4 \(from 0\): Tried to step 4 times",
    ):
        schedule.rates(10)


def test_schedule_that_divides_by_zero_is_refused():
    with pytest.raises(
        ConfigError, match="^CosineAnnealingLR has no rate for epoch 1"
    ):
        create(
            {"type": "CosineAnnealingLR", "T_max": 0}, optimizer=optimizer(0.1)
        ).rates(1)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(
        ConfigError,
        match="^OneCycleLR cannot be built: You must define either total_steps OR",
    ):
        create({"type": "OneCycleLR", "max_lr": 0.1}, optimizer=optimizer(0.1))


# ---- lengths that depend on the run's ----


@pytest.mark.parametrize(
    "milestones", [[0.3, 0.7], ["3 epochs", "70 steps"], ["30 %", 7]]
)
def test_milestones_may_be_fractions_of_the_run(milestones):
    specification = {"type": "MultiStepLR", "milestones": milestones}
    schedule = built_for(
        RunLength(10, 10), specification, optimizer=optimizer(0.1)
    )
    assert [schedule.rates(epoch)[0] for epoch in range(10)] == pytest.approx(
        [0.1] * 3 + [0.01] * 4 + [0.001] * 3
    )


def test_the_length_of_a_cosine_may_be_the_whole_run():
    specification = {"type": "CosineAnnealingLR", "T_max": 1.0}
    schedule = built_for(
        RunLength(12, 5), specification, optimizer=optimizer(0.1, 0.02)
    )
    assert [schedule.rates(epoch) for epoch in range(12)] == rates_of_torch(
        "CosineAnnealingLR", {"T_max": 12}, 12
    )


def test_a_whole_number_means_the_same_with_and_without_a_run():
    specification = {"type": "MultiStepLR", "milestones": [3]}
    alone = create(specification, optimizer=optimizer(0.1))
    in_a_run = built_for(
        RunLength(72, 100), specification, optimizer=optimizer(0.1)
    )
    assert [alone.rates(epoch) for epoch in range(6)] == [
        in_a_run.rates(epoch) for epoch in range(6)
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0.5}, "OneCycleLR has no rate for epoch 7"),
        (
            {"total_steps": 1.0, "pct_start": 5.0},
            "OneCycleLR cannot be built: .*pct_start",
        ),
    ],
)
def test_a_schedule_that_does_not_fit_the_run_is_refused_before_its_first_step(
    settings, message
):
    specification = {"type": "OneCycleLR", "max_lr": 0.1, **settings}
    with pytest.raises(ConfigError, match=message):
        built_for(
            RunLength(12, 5), specification, optimizer=optimizer(0.1)
        ).rates(11)


# ---- flat, then cosine ----


def flat_cosine(**settings):
    specification = {"type": "FlatCosineLR", **settings}
    return built_for(
        RunLength(20, 10), specification, optimizer=optimizer(0.1, 0.02)
    )


def test_rate_is_flat_then_falls_along_a_cosine_to_its_part_and_stays_there():
    schedule = flat_cosine(flat_epochs=10, end_epoch=18, lr_gamma=0.5)
    assert {schedule.rates(epoch)[0] for epoch in range(11)} == {0.1}
    assert schedule.rates(14)[0] == pytest.approx(0.075)
    assert [schedule.rates(epoch)[0] for epoch in (18, 19)] == pytest.approx(
        [0.05, 0.05]
    )


def test_cosine_starts_at_half_of_the_run_by_default():
    assert flat_cosine().rates(15) == flat_cosine(
        flat_epochs=10, end_epoch=20
    ).rates(15)


def test_cosine_without_an_end_ends_with_the_run():
    assert flat_cosine(end_epoch=None).rates(15) == flat_cosine(
        end_epoch=20
    ).rates(15)


def test_cosine_moves_within_an_epoch():
    schedule = flat_cosine(flat_epochs=10, end_epoch=20, lr_gamma=0.0)
    rates = [schedule.rates(12, share / 10)[0] for share in range(10)]
    assert all(later < earlier for earlier, later in zip(rates, rates[1:]))
    assert schedule.rates(12, 1.0) == pytest.approx(schedule.rates(13))


def test_cosine_scales_all_groups_alike():
    rates = flat_cosine(flat_epochs=0.25, end_epoch=0.9).rates(12)
    assert rates[0] / 0.1 == pytest.approx(rates[1] / 0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"flat_epochs": 0.9, "end_epoch": 0.5},
            "the flat part ends in epoch 18, the cosine in epoch 10,",
        ),
        ({"lr_gamma": 1.5}, "lr_gamma is 1.5, expected 0 to 1"),
        (
            {"flat_epochs": -1},
            "flat_epochs is -1, expected an integer number of epochs",
        ),
    ],
)
def test_an_invalid_cosine_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        flat_cosine(**settings)


def test_a_cosine_in_a_run_of_unknown_length_is_refused_and_not_guessed():
    with pytest.raises(
        ConfigError,
        match="flat_epochs is 0.5, which depends on the length of the run",
    ):
        create(
            {"type": "FlatCosineLR", "flat_epochs": 0.5},
            optimizer=optimizer(0.1),
        )
