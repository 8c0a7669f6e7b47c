"""The moving average of the weights."""

import copy
import math

import pytest
import torch
from torch import nn

from src.core.build import create
from src.core.durations import RunLength
from src.core.errors import ConfigError
from src.optim.ema import ModelEMA
from tests.fixtures.lengths import built_for


class Net(nn.Module):
    """A trained weight, a frozen one, batch statistics, and constants of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.norm = nn.BatchNorm2d(2)
        self.whole_number = nn.Parameter(torch.tensor([4]), requires_grad=False)
        self.register_buffer("third", torch.tensor([1 / 3, 1 / 6]))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.alias = self.trained


def changed(model: nn.Module) -> nn.Module:
    """Overwrite every tensor of a model by other values."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in {
            id(t): t for t in model.state_dict(keep_vars=True).values()
        }.values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.copy_(
                    ~tensor if tensor.dtype == torch.bool else tensor + 1
                )
    return model


@pytest.fixture
def net():
    return Net()


# ---- the decay ----


@pytest.mark.parametrize(
    ("update", "decay"),
    [(1, 0.00099940), (100, 0.095153), (1000, 0.632057), (5000, 0.993163)],
)
def test_decay_ramps_up_as_published(net, update, decay):
    ema = ModelEMA(net, decay=0.9999, warmups=1000)
    ema.updates = update - 1
    assert ema.current_decay() == pytest.approx(
        decay, abs=5e-7 if update > 1 else 5e-9
    )


def test_decay_without_a_ramp_is_constant(net):
    ema = ModelEMA(net, decay=0.9, warmups=0)
    decays = []
    for _ in range(3):
        decays.append(ema.current_decay())
        ema.update(net)
    assert decays == [0.9] * 3


def test_updates_follow_the_formula(net):
    ema, expected = (
        ModelEMA(net, decay=0.99, warmups=5),
        net.trained.weight.detach().double().clone(),
    )
    for update in range(1, 21):
        with torch.no_grad():
            net.trained.weight += torch.randn(2, 2)
        ema.update(net)
        decay = 0.99 * (1 - math.exp(-update / 5))
        expected = (
            decay * expected
            + (1 - decay) * net.trained.weight.detach().double()
        )
    torch.testing.assert_close(
        ema.module.trained.weight.double(), expected, rtol=1e-5, atol=1e-6
    )


def test_decay_that_is_set_later_acts_from_the_next_update(net):
    ema = ModelEMA(net, decay=0.9, warmups=0)
    before = net.trained.weight.detach().clone()
    changed(net)
    ema.decay = 0.25
    ema.update(net)
    torch.testing.assert_close(
        ema.module.trained.weight, 0.25 * before + 0.75 * net.trained.weight
    )


def test_first_updates_are_left_out_on_request(net):
    ema = ModelEMA(net, warmups=0, decay=0.5, start=2)
    before = net.trained.weight.detach().clone()
    changed(net)
    ema.update(net)
    ema.update(net)
    assert (ema.updates, torch.equal(ema.module.trained.weight, before)) == (
        0,
        True,
    )
    ema.update(net)
    torch.testing.assert_close(
        ema.module.trained.weight, (before + net.trained.weight) / 2
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"decay": 1.5}, "decay is 1.5, expected 0 to 1"),
        ({"decay": -0.1}, "decay is -0.1, expected 0 to 1"),
        ({"warmups": -1}, "warmups is -1, expected an integer"),
        ({"start": -1}, "start is -1, expected an integer"),
    ],
)
def test_setting_out_of_range_is_refused(net, settings, text):
    with pytest.raises(ConfigError, match=f"^ModelEMA.{text}"):
        create({"type": "ModelEMA", **settings}, model=net)


# ---- what is averaged and what is copied ----


def averaged_once(net) -> tuple[dict, dict, dict]:
    """Return the state before, the state of the changed model, and the average with equal weights."""
    before = copy.deepcopy(net.state_dict())
    ema = ModelEMA(net, decay=0.5, warmups=0)
    ema.update(changed(net))
    return before, net.state_dict(), ema.module.state_dict()


@pytest.mark.parametrize(
    "name",
    [
        "trained.weight",
        "trained.bias",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "alias.weight",
    ],
)
def test_trained_parameters_and_batch_statistics_are_averaged_once(net, name):
    before, after, average = averaged_once(net)
    torch.testing.assert_close(average[name], (before[name] + after[name]) / 2)


@pytest.mark.parametrize(
    "name",
    [
        "frozen.weight",
        "frozen.bias",
        "third",
        "mask",
        "whole_number",
        "norm.num_batches_tracked",
    ],
)
def test_frozen_parameters_constants_and_integers_are_copied_bit_by_bit(
    net, name
):
    before, after, average = averaged_once(net)
    assert not torch.equal(before[name], after[name])
    assert torch.equal(average[name], after[name])


def test_constants_do_not_drift_over_many_updates(net):
    ema = ModelEMA(net)
    for _ in range(500):
        ema.update(net)
    assert torch.equal(ema.module.third, torch.tensor([1 / 3, 1 / 6]))


def test_parameter_is_averaged_from_the_moment_it_thaws(net):
    ema = ModelEMA(net, decay=0.5, warmups=0)
    ema.update(net)
    before = net.frozen.weight.detach().clone()
    net.frozen.requires_grad_(True)
    ema.update(changed(net))
    torch.testing.assert_close(
        ema.module.frozen.weight, (before + net.frozen.weight) / 2
    )


def test_average_does_not_share_memory_with_the_model(net):
    ema = ModelEMA(net)
    before = ema.module.trained.weight.clone()
    changed(net)
    assert torch.equal(ema.module.trained.weight, before)


def test_average_is_in_evaluation_mode_and_needs_no_gradient(net):
    module = ModelEMA(net.train()).module
    assert not any(m.training for m in module.modules())
    assert not any(p.requires_grad for p in module.parameters())


def test_model_stays_in_its_mode(net):
    ModelEMA(net.train())
    assert (net.training, net.trained.weight.requires_grad) == (True, True)


# ---- storing and restarting ----


def test_state_goes_round(net):
    first = ModelEMA(net, decay=0.9, warmups=10, start=1)
    for _ in range(4):
        first.update(changed(net))
    first.decay = 0.7
    second = ModelEMA(Net(), decay=0.9, warmups=10, start=1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for ema in (first, second):
        ema.update(net)
    assert (second.updates, second.skipped, second.decay) == (4, 1, 0.7)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            first.module.state_dict().values(),
            second.module.state_dict().values(),
        )
    )


def test_official_state_of_weights_and_count_is_taken(net):
    ema = ModelEMA(Net(), decay=0.9, start=3)
    ema.load_state_dict({"module": changed(net).state_dict(), "updates": 70})
    assert (
        ema.updates,
        ema.decay,
        torch.equal(ema.module.trained.weight, net.trained.weight),
    ) == (
        70,
        0.9,
        True,
    )


def test_official_state_has_its_first_updates_behind_it(net):
    ema = ModelEMA(net, start=3)
    ema.load_state_dict({"module": net.state_dict(), "updates": 70})
    ema.update(net)
    assert ema.updates == 71


def test_average_moves_on_from_a_loaded_state(net):
    ema = ModelEMA(net, decay=0.5, warmups=0)
    ema.update(net)
    loaded = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    ema.load_state_dict({"module": loaded, "updates": 1})
    ema.update(net)
    torch.testing.assert_close(
        ema.module.trained.weight, net.trained.weight / 2
    )


def test_restart_continues_from_other_weights_with_another_decay(net):
    ema = ModelEMA(net, decay=0.9, warmups=0)
    ema.update(net)
    best = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    ema.restart(best, 0.75)
    ema.update(net)
    assert ema.updates == 2
    torch.testing.assert_close(
        ema.module.trained.weight, net.trained.weight / 4
    )


def test_restart_does_not_repeat_the_ramp(net):
    ema = ModelEMA(net, decay=0.9999, warmups=1000)
    ema.updates = 5000
    ema.restart(net.state_dict(), 0.5)
    assert ema.current_decay() == pytest.approx(0.5 * (1 - math.exp(-5.001)))


@pytest.mark.parametrize(
    ("warmups", "steps"),
    [(0.05, 50), ("2 epochs", 200), ("30 steps", 30), (40, 40)],
)
def test_ramp_may_be_given_in_steps_in_epochs_or_as_a_fraction(
    net, warmups, steps
):
    ema = built_for(
        RunLength(10, 100),
        {"type": "ModelEMA", "decay": 0.9, "warmups": warmups},
        model=net,
    )
    assert ema.current_decay() == pytest.approx(
        0.9 * (1 - math.exp(-1 / steps))
    )


# ---- a horizon that follows the length of the run ----


def following(
    run: RunLength,
    net: nn.Module,
    decay: float | None = None,
    warmups: float | None = None,
) -> ModelEMA:
    """Return an average whose decay and ramp are those of a configuration."""
    return built_for(
        run, {"type": "ModelEMA", "decay": decay, "warmups": warmups}, model=net
    )


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "horizon"),
    [
        (80, 31, 50),
        (12, 125, 50),
        (80, 100, 160),
        (72, 7393, 10_000),
        (1, 1, 50),
    ],
)
def test_the_default_horizon_is_two_percent_of_the_run_within_bounds(
    net, epochs, steps_per_epoch, horizon
):
    ema = following(RunLength(epochs, steps_per_epoch), net)
    assert (ema.decay, ema.warmups) == (1 - 1 / horizon, horizon)
    assert ema.horizon == pytest.approx(horizon)


@pytest.mark.parametrize(
    ("horizon", "steps"), [(0.1, 100), ("2 epochs", 200), (30, 30)]
)
def test_a_horizon_may_be_given_as_any_length_and_is_taken_as_it_is(
    net, horizon, steps
):
    specification = {
        "type": "ModelEMA",
        "decay": None,
        "warmups": 7,
        "horizon": horizon,
    }
    ema = built_for(RunLength(10, 100), specification, model=net)
    assert (ema.decay, ema.warmups) == (1 - 1 / steps, 7)


def test_a_ramp_of_none_is_as_long_as_the_horizon_of_a_given_decay(net):
    ema = create(
        {"type": "ModelEMA", "decay": 0.99, "warmups": None}, model=net
    )
    assert (ema.horizon, ema.warmups) == (pytest.approx(100), 100)


def test_the_ema_of_a_short_run_is_young(net):
    """Its weights are on average no older than a tenth of the run; with a fixed decay of 0.9999 they are."""

    def mean_age(decay: float | None, warmups: float | None) -> float:
        ema, age = following(RunLength(80, 31), net, decay, warmups), 0.0
        for ema.updates in range(2480):
            age = ema.current_decay() * (age + 1)
        return age / 2480

    assert mean_age(None, None) < 0.1
    assert mean_age(0.9999, 0.05) > 0.6


def test_decay_and_horizon_together_are_refused(net):
    with pytest.raises(
        ConfigError,
        match="decay is 0.9 and ModelEMA.horizon is 100: only one of them can be set",
    ):
        create({"type": "ModelEMA", "decay": 0.9, "horizon": 100}, model=net)


def test_a_horizon_without_a_step_is_refused(net):
    with pytest.raises(
        ConfigError, match="ModelEMA.horizon is 0, expected at least 1 step"
    ):
        create({"type": "ModelEMA", "decay": None, "horizon": 0}, model=net)


def test_neither_decay_nor_horizon_is_refused_without_a_run(net):
    with pytest.raises(
        ConfigError, match="neither a decay nor a horizon, expected one of them"
    ):
        ModelEMA(net, decay=None)


@pytest.mark.parametrize(("warmups", "ramp"), [(None, 200), (30, 30)])
def test_a_horizon_in_steps_needs_no_run(net, warmups, ramp):
    assert (
        ModelEMA(net, decay=None, warmups=warmups, horizon=200).warmups == ramp
    )


def test_a_restart_without_a_decay_of_its_own_keeps_the_horizon(net):
    ema = following(RunLength(10, 1000), net)
    ema.restart(net.state_dict(), None)
    assert ema.horizon == pytest.approx(200)


def test_a_resumed_run_takes_a_changed_decay_but_not_over_that_of_a_restart(
    net,
):
    before, changed_setting = ModelEMA(net, decay=0.9), ModelEMA(net, decay=0.8)
    changed_setting.load_state_dict(before.state_dict())
    assert changed_setting.decay == 0.8
    before.restart(net.state_dict(), 0.5)
    changed_setting.load_state_dict(before.state_dict())
    assert changed_setting.decay == 0.5
