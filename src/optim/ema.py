"""The exponential moving average (EMA) of the weights, which is what gets evaluated and saved."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.durations import Duration, RunLength, settled
from ..core.errors import ConfigError
from ..core.registry import register

_Pairs = list[tuple[Tensor, Tensor]]


HORIZON_SHARE, SHORTEST_HORIZON, LONGEST_HORIZON = 0.02, 50, 10_000
"""The default horizon: this fraction of a run's steps, kept between two numbers of steps."""


@register()
class ModelEMA:
    """Exponential moving average of all trainable parameters and of batch statistics.

    Its horizon, 1 / (1 - decay), is the number of steps after which weights count for little: an EMA whose horizon
    is as long as the run is a mixture of everything the model has been. Frozen parameters and buffers that are not
    running statistics are constants: they are copied, since averaging them would only add rounding errors. `decay`
    may be set at any time and acts from the next update on.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float | None = 0.9999,
        warmups: Duration | None = 1000,
        start: Duration = 0,
        horizon: Duration | None = None,
    ) -> None:
        """Copy the model.

        Args:
            model: the unwrapped model.
            decay: weight of the past, 0..1; None follows `horizon`.
            warmups: updates over which the decay ramps up, decay * (1 - exp(-updates / warmups)); 0 disables the ramp,
                None makes it as long as the horizon. A whole number counts steps.
            start: updates to leave out at first, given likewise.
            horizon: in place of `decay`, which is then 1 - 1 / horizon; None with a `decay` of None takes 2 % of the
                run, at least 50 and at most 10,000 steps.

        Raises:
            ConfigError: for a value out of its range, or if both `decay` and `horizon` are set.
        """
        if decay is not None and not 0 <= decay <= 1:
            raise ConfigError(f"ModelEMA.decay is {decay}, expected 0 to 1")
        if decay is not None and horizon is not None:
            raise ConfigError(
                f"ModelEMA.decay is {decay} and ModelEMA.horizon is {horizon!r}: they say the same, set one of them to ~"
            )
        self._lengths = {"warmups": warmups, "start": start, "horizon": horizon}
        self._follows_horizon = decay is None
        self._default_horizon = decay is None and horizon is None
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = self.configured_decay = _decay_of(LONGEST_HORIZON) if decay is None else decay
        self._settle(lambda length, name: settled(length, name, "steps"))
        self.updates = 0
        self.skipped = 0
        self._pairs: tuple[tuple, _Pairs, _Pairs] | None = None

    def set_run_length(self, run: RunLength) -> None:
        """Settle lengths that depend on the run's."""
        if self._default_horizon:
            steps = round(HORIZON_SHARE * run.steps)
            self._lengths["horizon"] = min(max(steps, SHORTEST_HORIZON), LONGEST_HORIZON)
        self._settle(run.in_steps)

    def _settle(self, settle: Callable[[Duration | None, str], int | None]) -> None:
        """Take over the lengths that `settle` knows; None stands for one that depends on a run not known yet."""

        def length(name: str) -> int | None:
            given = self._lengths[name]
            return None if given is None else settle(given, f"ModelEMA.{name}")

        self.start = length("start")
        if self._follows_horizon:
            horizon = length("horizon")
            if horizon is not None and horizon < 1:
                raise ConfigError(
                    f"ModelEMA.horizon is {self._lengths['horizon']!r}, expected at least 1 step"
                )
            self.decay = self.configured_decay = _decay_of(LONGEST_HORIZON if horizon is None else horizon)
        ramp = round(min(self.horizon, LONGEST_HORIZON))
        self.warmups = ramp if self._lengths["warmups"] is None else length("warmups")

    @property
    def horizon(self) -> float:
        """Steps after which weights count for 1 / e of what they did; infinite with a decay of 1."""
        return 1 / (1 - self.decay) if self.decay < 1 else math.inf

    def current_decay(self) -> float:
        """Return the decay that the next update will use, as if it were counted already."""
        if not self.warmups:
            return self.decay
        return self.decay * (1 - math.exp(-(self.updates + 1) / self.warmups))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model`, after an optimizer step."""
        if self.skipped < self.start:
            self.skipped += 1
            return
        decay = self.current_decay()
        self.updates += 1
        averaged, constant = self._pair_tensors(model)
        if averaged:
            ours, theirs = (list(tensors) for tensors in zip(*averaged))
            torch._foreach_mul_(ours, decay)
            torch._foreach_add_(ours, theirs, alpha=1 - decay)
        if constant:
            torch._foreach_copy_(*(list(tensors) for tensors in zip(*constant)))

    @torch.no_grad()
    def restart(self, weights: dict[str, Tensor], decay: float | None) -> None:
        """Continue from `weights` (a state_dict); the ramp is not repeated. A decay of None keeps the present one."""
        self.module.load_state_dict(weights)
        self.decay = self.decay if decay is None else decay

    def state_dict(self) -> dict[str, Any]:
        """Return weights, counts, the present decay and the configured one."""
        return {
            "module": self.module.state_dict(),
            "updates": self.updates,
            "skipped": self.skipped,
            "decay": self.decay,
            "configured_decay": self.configured_decay,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from `state_dict`; an official checkpoint holds `module` and `updates` alone.

        A decay that was set during the run is restored; one that was not is the configuration's, which a resumed run
        may have changed.
        """
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
        self.skipped = state.get("skipped", self.start)
        if state.get("decay") != state.get("configured_decay"):
            self.decay = state["decay"]

    def _pair_tensors(self, model: nn.Module) -> tuple[_Pairs, _Pairs]:
        """Return (average, weight) pairs to be averaged, and pairs to be copied; each tensor once."""
        key = (id(model), *(parameter.requires_grad for parameter in model.parameters()))
        if self._pairs is None or self._pairs[0] != key:
            moving = {id(p) for p in model.parameters() if p.requires_grad}
            moving |= {
                id(b)
                for m in model.modules()
                if isinstance(m, nn.modules.batchnorm._BatchNorm)
                for b in m.buffers(recurse=False)
            }
            ours, pairs = self.module.state_dict(keep_vars=True), {}
            for name, theirs in model.state_dict(keep_vars=True).items():
                pairs[id(theirs)] = (
                    ours[name].data,
                    theirs.data,
                    theirs.is_floating_point() and id(theirs) in moving,
                )
            self._pairs = (
                key,
                [p[:2] for p in pairs.values() if p[2]],
                [p[:2] for p in pairs.values() if not p[2]],
            )
        return self._pairs[1:]


def _decay_of(horizon: int) -> float:
    return 1 - 1 / horizon
