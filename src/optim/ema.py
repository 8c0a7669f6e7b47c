"""The exponential moving average (EMA) of the weights, which is what gets evaluated and saved."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.durations import RunLength, StepLength
from ..core.errors import ConfigError
from ..core.registry import register

_Pairs = list[tuple[Tensor, Tensor]]


HORIZON_SHARE, SHORTEST_HORIZON, LONGEST_HORIZON = 0.02, 50, 10_000
"""The default horizon: this fraction of a run's steps, kept between two numbers of steps."""


@register()
class ModelEMA:
    """Exponential moving average of all trainable parameters and of batch statistics.

    Its horizon, 1 / (1 - decay), is the number of steps after which weights count for little: an EMA whose
    horizon is as long as the run is a mixture of everything the model has been. Frozen parameters and buffers
    that are not running statistics are constants: they are copied, since averaging them would only add
    rounding errors. `decay` may be set at any time and acts from the next update on.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float | None = 0.9999,
        warmups: StepLength | None = 1000,
        start: StepLength = 0,
        horizon: StepLength | None = None,
    ) -> None:
        """Copy the model.

        Args:
            model: the unwrapped model.
            decay: weight of the past, 0..1; None follows `horizon`.
            warmups: updates over which the decay ramps up, decay * (1 - exp(-updates / warmups)); 0 disables
                the ramp, None makes it as long as the horizon, at most 10,000.
            start: updates to leave out at first.
            horizon: steps, in place of `decay`, which is then 1 - 1 / horizon. In a configuration that sets
                neither of them it is 2 % of the run, at least 50 and at most 10,000 steps.

        Raises:
            ConfigError: for a value out of its range, or unless exactly one of `decay` and `horizon` is set.
        """
        if decay is not None and not 0 <= decay <= 1:
            raise ConfigError(f"ModelEMA.decay is {decay}, expected 0 to 1")
        if decay is not None and horizon is not None:
            raise ConfigError(
                f"ModelEMA.decay is {decay} and ModelEMA.horizon is {horizon!r}: they say the same, set one "
                f"of them to ~"
            )
        if decay is None:
            decay = _decay_of(horizon)
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = self.configured_decay = decay
        self.start = start
        self.warmups = round(min(self.horizon, LONGEST_HORIZON)) if warmups is None else warmups
        self.updates = 0
        self.skipped = 0
        self._pairs: tuple[tuple, _Pairs, _Pairs] | None = None

    @staticmethod
    def __resolve_lengths__(settings: Mapping[str, Any], run: RunLength) -> dict[str, Any]:
        """Let the horizon follow the run if neither it nor a decay is set, and the ramp last for one
        horizon."""
        if settings.get("decay", 0.9999) is not None or settings.get("horizon") is not None:
            return {}
        steps = round(HORIZON_SHARE * run.steps)
        horizon = min(max(steps, SHORTEST_HORIZON), LONGEST_HORIZON)
        ramp = {"warmups": horizon} if settings.get("warmups", 1000) is None else {}
        return {"horizon": horizon} | ramp

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
            ours = [average for average, _ in averaged]
            torch._foreach_mul_(ours, decay)
            torch._foreach_add_(ours, [weight for _, weight in averaged], alpha=1 - decay)
        if constant:
            torch._foreach_copy_([copied for copied, _ in constant], [source for _, source in constant])

    @torch.no_grad()
    def restart(self, weights: dict[str, Tensor], decay: float | None) -> None:
        """Continue from `weights` (a state_dict); the ramp is not repeated. A decay of None keeps the present
        one."""
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

        A decay that was set during the run is restored; one that was not is the configuration's, which a
        resumed run may have changed.
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


def _decay_of(horizon: int | None) -> float:
    if horizon is None:
        raise ConfigError("ModelEMA has neither a decay nor a horizon, expected one of them")
    if horizon < 1:
        raise ConfigError(f"ModelEMA.horizon is {horizon!r}, expected at least 1 step")
    return 1 - 1 / horizon
