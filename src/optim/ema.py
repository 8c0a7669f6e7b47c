"""Exponential moving average (EMA) of the weights, which is evaluated and saved."""

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
from ..runtime.tensors import Copies, group_by_dtype

HORIZON_SHARE = 0.02
"""Default horizon as a fraction of a run's steps."""

SHORTEST_HORIZON = 50
LONGEST_HORIZON = 10_000
"""Limits of the default horizon, in steps."""


@register()
class ModelEMA:
    """Exponential moving average of all trainable parameters and of batch statistics.

    Its horizon, 1 / (1 - decay), is the number of steps over which it averages. If the horizon is as long as
    the run, the EMA still contains the early weights. Frozen parameters and buffers other than running
    statistics are copied, because averaging constants would only add rounding errors. `decay` may be set at
    any time; the next update uses it.
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
            decay: weight of the previous average, 0..1; None derives it from `horizon`.
            warmups: number of updates over which the decay ramps up, decay * (1 - exp(-updates / warmups)); 0
                disables the ramp, None makes it as long as the horizon, at most 10,000.
            start: number of updates to skip at the beginning.
            horizon: horizon in steps, an alternative to `decay`, which is then 1 - 1 / horizon. A
                configuration that sets neither gets 2 % of the run, at least 50 and at most 10,000 steps.

        Raises:
            ConfigError: for a value out of its range, or unless exactly one of `decay` and `horizon` is set.
        """
        if decay is not None and not 0 <= decay <= 1:
            raise ConfigError(f"ModelEMA.decay is {decay}, expected 0 to 1")
        if decay is not None and horizon is not None:
            raise ConfigError(
                f"ModelEMA.decay is {decay} and ModelEMA.horizon is {horizon!r}: only one of them can be "
                "set; set the other to ~"
            )
        if decay is None:
            decay = _decay_of(horizon)
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.configured_decay = decay
        self.start = start
        if warmups is None:
            warmups = round(min(self.horizon, LONGEST_HORIZON))
        self.warmups = warmups
        self.updates = 0
        self.skipped = 0
        self._pairs: tuple[tuple, list[Copies], list[Copies]] | None = None

    @staticmethod
    def __resolve_lengths__(
        settings: Mapping[str, Any], run: RunLength
    ) -> dict[str, Any]:
        """Derive horizon and ramp from the length of the run if neither horizon nor decay is set."""
        has_decay = settings.get("decay", 0.9999) is not None
        has_horizon = settings.get("horizon") is not None
        if has_decay or has_horizon:
            return {}
        steps = round(HORIZON_SHARE * run.steps)
        horizon = min(max(steps, SHORTEST_HORIZON), LONGEST_HORIZON)
        lengths = {"horizon": horizon}
        if settings.get("warmups", 1000) is None:
            lengths["warmups"] = horizon
        return lengths

    @property
    def horizon(self) -> float:
        """Steps after which the influence of weights has decayed to 1 / e; infinite for a decay of 1."""
        return 1 / (1 - self.decay) if self.decay < 1 else math.inf

    def current_decay(self) -> float:
        """Return the decay of the next update."""
        if not self.warmups:
            return self.decay
        return self.decay * (1 - math.exp(-(self.updates + 1) / self.warmups))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the weights of `model`, after an optimizer step."""
        if self.skipped < self.start:
            self.skipped += 1
            return
        decay = self.current_decay()
        self.updates += 1
        averaged, constant = self._pair_tensors(model)
        for averages, weights in averaged:
            torch._foreach_mul_(averages, decay)
            torch._foreach_add_(averages, weights, alpha=1 - decay)
        for copies, sources in constant:
            torch._foreach_copy_(copies, sources)

    @torch.no_grad()
    def restart(self, weights: dict[str, Tensor], decay: float | None) -> None:
        """Continue from `weights` (a state_dict) without a new ramp; None keeps the present decay."""
        self.module.load_state_dict(weights)
        if decay is not None:
            self.decay = decay

    def state_dict(self) -> dict[str, Any]:
        """Return weights, counters, and the present and the configured decay."""
        return {
            "module": self.module.state_dict(),
            "updates": self.updates,
            "skipped": self.skipped,
            "decay": self.decay,
            "configured_decay": self.configured_decay,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from `state_dict`; official checkpoints hold only `module` and `updates`.

        A decay that was set during the run is restored. Otherwise the configured one is used, which may have
        changed.
        """
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
        self.skipped = state.get("skipped", self.start)
        if state.get("decay") != state.get("configured_decay"):
            self.decay = state["decay"]

    def _pair_tensors(
        self, model: nn.Module
    ) -> tuple[list[Copies], list[Copies]]:
        """Return groups of tensors to be averaged, and groups to be copied; each tensor occurs once."""
        trainable = [
            parameter.requires_grad for parameter in model.parameters()
        ]
        key = (id(model), *trainable)
        if self._pairs is None or self._pairs[0] != key:
            moving = _moving_tensors(model)
            ours = self.module.state_dict(keep_vars=True)
            averaged: dict[int, tuple[Tensor, Tensor]] = {}
            constant: dict[int, tuple[Tensor, Tensor]] = {}
            for name, theirs in model.state_dict(keep_vars=True).items():
                is_averaged = (
                    theirs.is_floating_point() and id(theirs) in moving
                )
                pairs = averaged if is_averaged else constant
                pairs[id(theirs)] = (ours[name].data, theirs.data)
            self._pairs = (
                key,
                group_by_dtype(averaged.values()),
                group_by_dtype(constant.values()),
            )
        return self._pairs[1:]


def _moving_tensors(model: nn.Module) -> set[int]:
    """Return the ids of trainable parameters and batch norm statistics."""
    moving = set()
    for parameter in model.parameters():
        if parameter.requires_grad:
            moving.add(id(parameter))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            moving.update(map(id, module.buffers(recurse=False)))
    return moving


def _decay_of(horizon: int | None) -> float:
    if horizon is None:
        raise ConfigError(
            "ModelEMA has neither a decay nor a horizon, expected one of them"
        )
    if horizon < 1:
        raise ConfigError(
            f"ModelEMA.horizon is {horizon!r}, expected at least 1 step"
        )
    return 1 - 1 / horizon
