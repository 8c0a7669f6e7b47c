"""The weight of a loss that follows a target share of the gradient of some layers, changed once an epoch."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError

LARGEST_CHANGE = 10.0
"""The weight changes at most by this factor, up or down, in one epoch."""


class GradientShareWeight:
    """A weight that is adapted so that some layers get a given share of all gradients.

    Source: RT-DETRv4, 2025 (gradient-guided adaptive modulation).
    """

    def __init__(
        self,
        weight: float,
        share: float | None = None,
        tolerance: float = 1.0,
        default_weight: float | None = None,
        *,
        prefix: str = "",
    ) -> None:
        """Store the settings.

        Args:
            weight: weight of the first epoch.
            share: target share of the gradient, in percent; None keeps the weight constant.
            tolerance: permitted distance from `share`, in percent; within it the weight does not change.
            default_weight: weight in the final stage without strong augmentation; None keeps the last one.
            prefix: begin of the names of these settings in messages.

        Raises:
            ConfigError: if a weight is not positive, or `share` and `tolerance` leave the range of 0 to 100.
        """
        for name, value in (
            ("weight", weight),
            ("default_weight", default_weight),
        ):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(
                    f"distillation.{prefix}{name} is {value}, expected a number above 0; to train without "
                    "distillation: -u distillation=~"
                )
        in_range = share is None or (
            tolerance >= 0 and tolerance < share < 100 - tolerance
        )
        if not in_range:
            raise ConfigError(
                f"distillation.{prefix}share is {share} and distillation.{prefix}tolerance is {tolerance}, "
                "expected percent with share - tolerance above 0 and share + tolerance below 100"
            )
        self.weight = float(weight)
        self.share = share
        self.tolerance = tolerance
        self.default_weight = default_weight
        self.is_final_stage = False
        self._sum: Tensor | float = 0.0
        self._steps = 0

    @property
    def adapts(self) -> bool:
        """True if the weight follows the share of the gradient now."""
        return self.share is not None and not self.is_final_stage

    def begin_epoch(self, *, final_stage: bool) -> None:
        """Use the default weight from the final stage on. Repeating this within an epoch changes nothing."""
        self.is_final_stage = final_stage
        if final_stage and self.default_weight is not None:
            self.weight = self.default_weight

    @torch.no_grad()
    def observe(
        self, parameters: Sequence[Tensor], watched: Collection[int]
    ) -> None:
        """Add the share of one step to the sum, without a host-device synchronization.

        Args:
            parameters: all parameters that have a gradient.
            watched: `id` of each parameter of the layers that are watched.
        """
        if not self.adapts or not parameters:
            return
        gradients = []
        for parameter in parameters:
            assert parameter.grad is not None
            gradients.append(parameter.grad)
        norms = torch._foreach_norm(gradients, 1)
        watched_norms = []
        for parameter, norm in zip(parameters, norms):
            if id(parameter) in watched:
                watched_norms.append(norm)
        if not watched_norms:
            return
        total = torch.stack(norms).sum()
        smallest = torch.finfo(total.dtype).tiny
        share = torch.stack(watched_norms).sum() / total.clamp(min=smallest)
        self._sum = share + self._sum
        self._steps += 1

    def mean_share(self) -> float | None:
        """Return the mean share over the steps so far in percent, or None without steps; reads the device."""
        if not self._steps:
            return None
        return 100 * float(self._sum) / self._steps

    def end_epoch(self) -> float | None:
        """Adapt the weight to the mean share of the epoch, and return that share in percent or None."""
        share = self.mean_share()
        self.forget()
        if share is not None and self.share is not None and self.adapts:
            self.weight *= weight_factor(share, self.share, self.tolerance)
        return share

    def forget(self) -> None:
        """Discard the steps of the epoch in progress."""
        self._sum = 0.0
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the weight and the sum of the epoch in progress."""
        return {
            "weight": self.weight,
            "share_sum": float(self._sum),
            "share_steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from `state_dict`."""
        self.weight = state["weight"]
        self._sum = state["share_sum"]
        self._steps = state["share_steps"]


def weight_factor(share: float, target: float, tolerance: float) -> float:
    """Return the factor on the weight of a loss after an epoch.

    If the share p is outside of target - tolerance to target + tolerance, the factor aims at the limit on the
    other side, p*: it is p* (1 - p) / (p (1 - p*)), from 0.1 to 10.

    Args:
        share: observed share in percent.
        target: target share in percent.
        tolerance: permitted distance in percent.

    Example:
        >>> weight_factor(11.5, 11, 1)
        1.0
        >>> round(weight_factor(6.0, 11, 1), 3)  # (0.12 * 0.94) / (0.06 * 0.88)
        2.136
    """
    if abs(share - target) <= tolerance:
        return 1.0
    aim = target + tolerance if share < target else target - tolerance
    odds = aim / (100 - aim)
    if share <= 0:
        return LARGEST_CHANGE
    if share >= 100:
        return 1 / LARGEST_CHANGE
    factor = odds * (100 - share) / share
    return min(max(factor, 1 / LARGEST_CHANGE), LARGEST_CHANGE)
