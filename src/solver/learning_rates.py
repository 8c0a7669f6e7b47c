"""The learning rate of every group at every step: schedule, warm-up, thawing and batch size together."""

from __future__ import annotations

from typing import Any

import torch

from ..core.errors import ConfigError
from ..runtime.log import logger
from .plan import Progress


class LearningRates:
    """Sets the rates of an optimizer's groups. Without state: a rate follows from where the run stands."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: Any | None, warmup: Any | None, steps_per_epoch: int
    ) -> None:
        """Store.

        Args:
            optimizer: its groups may have a `thaw_epoch`, from which on they learn.
            schedule: gives `rates(epoch, share of it that is done)`; None for the rates that the groups begin with.
            warmup: gives `factor(step)`; None for none.
            steps_per_epoch: of the optimizer.
        """
        self.optimizer, self.schedule, self.warmup, self.steps_per_epoch = (
            optimizer,
            schedule,
            warmup,
            steps_per_epoch,
        )

    def scheduled(self, progress: Progress) -> list[float]:
        """Return each group's rate before warm-up."""
        if self.schedule is None:
            return [group.setdefault("initial_lr", group["lr"]) for group in self.optimizer.param_groups]
        return self.schedule.rates(progress.epoch, progress.step / self.steps_per_epoch)

    def set(self, progress: Progress) -> None:
        """Set each group's rate for the step to take; warm-up begins anew for what thaws."""
        for group, rate in zip(self.optimizer.param_groups, self.scheduled(progress)):
            thaw = group.get("thaw_epoch", 0)
            learned = (
                (progress.epoch - thaw) * self.steps_per_epoch + progress.step
                if thaw
                else progress.total_steps
            )
            group["lr"] = rate * (self.warmup.factor(max(learned, 0)) if self.warmup else 1.0)

    @property
    def highest(self) -> float:
        """The largest rate of the last step."""
        return max(group["lr"] for group in self.optimizer.param_groups)


def scale_to_batch(optimizer: torch.optim.Optimizer, base: int, batch: int, scheduler: str | None) -> None:
    """Bring rates that were chosen for a batch of `base` images to one of `batch`, in proportion (Goyal et al., 2017, section 2.1).

    Args:
        optimizer: whose groups are scaled, before a schedule reads them.
        base: images.
        batch: images of a step over all ranks.
        scheduler: name of the schedule.

    Raises:
        ConfigError: for a schedule that does not build on the optimizer's rates.
    """
    if scheduler == "OneCycleLR":
        raise ConfigError(
            "lr_base_batch_size scales the optimizer's rates, but OneCycleLR brings its own as max_lr; set that by hand and leave "
            "lr_base_batch_size out"
        )
    for group in optimizer.param_groups:
        group["lr"] *= batch / base
    logger.info(
        "learning rates are scaled by %.3g: made for a batch of %d, used with %d", batch / base, base, batch
    )
