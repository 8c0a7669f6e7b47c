"""The moving average of the weights, which is what gets evaluated and saved."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..core.durations import Duration, RunLength, settled
from ..core.errors import ConfigError
from ..core.registry import register

_Pairs = list[tuple[Tensor, Tensor]]


@register()
class ModelEMA:
    """Exponential moving average of all trainable parameters and of batch statistics.

    Frozen parameters and buffers that are not running statistics are constants: they are copied, since averaging
    them would only add rounding errors. `decay` may be set at any time and acts from the next update on.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, warmups: Duration = 1000, start: Duration = 0
    ) -> None:
        """Copy the model.

        Args:
            model: the unwrapped model.
            decay: weight of the past, 0..1.
            warmups: updates over which the decay ramps up: decay * (1 - exp(-updates / warmups)); 0 for no ramp. A whole number
                counts steps.
            start: updates to leave out at first, given likewise.
        """
        if not 0 <= decay <= 1:
            raise ConfigError(f"ModelEMA.decay is {decay}, expected 0 to 1")
        self._lengths = (warmups, start)
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.warmups, self.start = (
            settled(length, f"ModelEMA.{name}", "steps")
            for name, length in zip(("warmups", "start"), self._lengths)
        )
        self.updates = 0
        self.skipped = 0
        self._pairs: tuple[tuple, _Pairs, _Pairs] | None = None

    def set_run_length(self, run: RunLength) -> None:
        """Settle lengths that depend on the run's."""
        self.warmups, self.start = (
            run.in_steps(length, f"ModelEMA.{name}")
            for name, length in zip(("warmups", "start"), self._lengths)
        )

    def current_decay(self) -> float:
        """Return the decay that the next update will use, as if it were counted already."""
        return (
            self.decay
            if not self.warmups
            else self.decay * (1 - math.exp(-(self.updates + 1) / self.warmups))
        )

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
    def restart(self, weights: dict[str, Tensor], decay: float) -> None:
        """Go on from `weights` (a state_dict) with another decay; the ramp is not repeated."""
        self.module.load_state_dict(weights)
        self.decay = decay

    def state_dict(self) -> dict[str, Any]:
        """Return weights, counts and the present decay."""
        return {
            "module": self.module.state_dict(),
            "updates": self.updates,
            "skipped": self.skipped,
            "decay": self.decay,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from `state_dict`; an official checkpoint holds `module` and `updates` alone."""
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
        self.skipped, self.decay = state.get("skipped", self.start), state.get("decay", self.decay)

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
