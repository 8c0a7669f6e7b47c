"""Compute the learning rate of each parameter group at each step.

A rate is the group's configured `lr` (`optimizer.params`), times the factor of its block
(`nn/backbone/thaw_plan.py`, applied in `optim/param_groups.py`), times the batch scale (`scale_to_batch`),
times the schedule and the warm-up.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from ..core.errors import ConfigError
from ..runtime.log import logger
from .plan import Progress


class LearningRates:
    """Set the learning rates of an optimizer's groups. Rates follow from the progress of the run alone."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Any | None,
        warmup: Any | None,
        steps_per_epoch: int,
    ) -> None:
        """Store the arguments.

        Args:
            optimizer: optimizer whose groups may have a `thaw_epoch`, the epoch in which they become
                trainable.
            schedule: schedule with `rates(epoch, fraction of the epoch done)`; None keeps the initial rates.
            warmup: warm-up with `factor(step)`; None disables warm-up.
            steps_per_epoch: optimizer steps of an epoch.
        """
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup = warmup
        self.steps_per_epoch = steps_per_epoch

    def scheduled(self, progress: Progress) -> list[float]:
        """Return the rate of each group before warm-up."""
        if self.schedule is None:
            groups = self.optimizer.param_groups
            return [
                group.setdefault("initial_lr", group["lr"]) for group in groups
            ]
        return self.schedule.rates(
            progress.epoch, progress.step / self.steps_per_epoch
        )

    def set(self, progress: Progress) -> None:
        """Set the rate of each group for the next step; groups unfrozen later get their own warm-up."""
        for group, rate in zip(
            self.optimizer.param_groups, self.scheduled(progress)
        ):
            factor = 1.0
            if self.warmup:
                factor = self.warmup.factor(
                    self._steps_trained(group, progress)
                )
            group["lr"] = rate * factor

    def _steps_trained(self, group: dict[str, Any], progress: Progress) -> int:
        """Return the number of steps for which a group has been trainable."""
        thaw = group.get("thaw_epoch", 0)
        if not thaw:
            return progress.total_steps
        steps = (progress.epoch - thaw) * self.steps_per_epoch + progress.step
        return max(steps, 0)

    @property
    def highest(self) -> float:
        """Largest rate of the last step."""
        return max(group["lr"] for group in self.optimizer.param_groups)


def scale_to_batch(
    optimizer: torch.optim.Optimizer,
    base: int,
    batch: int,
    scheduler: str | None,
    rule: Literal["linear", "sqrt"] = "linear",
) -> None:
    """Scale learning rates with the batch size.

    Args:
        optimizer: optimizer whose groups are scaled, before a schedule reads their rates.
        base: batch size for which the rates were chosen.
        batch: images of one step over all ranks.
        scheduler: name of the schedule.
        rule: "linear" multiplies rates by batch / base (Goyal et al., 2017, section 2.1); "sqrt" by the
            square root of it, which suits optimizers such as AdamW (Malladi et al., 2022, arXiv 2205.10287).

    Raises:
        ConfigError: for a schedule that does not use the optimizer's rates.
    """
    if scheduler == "OneCycleLR":
        raise ConfigError(
            "lr_base_batch_size scales the optimizer's rates, but OneCycleLR takes its rates from max_lr; "
            "scale max_lr yourself and remove lr_base_batch_size"
        )
    factor = batch / base
    if rule == "sqrt":
        factor = math.sqrt(factor)
    for group in optimizer.param_groups:
        group["lr"] *= factor
    logger.info(
        "learning rates are scaled by %.3g: chosen for a batch of %d, used with %d (lr_scaling: %s)",
        factor,
        base,
        batch,
        rule,
    )
