"""Learning rates as functions of the position in training. Nothing here has state, so nothing can be lost on resume."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import lr_scheduler

from ..core.errors import ConfigError
from ..core.registry import arguments_of, register


class EpochSchedule:
    """A torch scheduler that is stepped once an epoch, as a function from the epoch to the rate of each group.

    The scheduler runs over a shadow of the optimizer, so that warm-up and thawing can scale the real rates without
    the scheduler building on the scaled ones.
    """

    def __init__(self, scheduler: type[lr_scheduler.LRScheduler], optimizer: torch.optim.Optimizer, **settings: Any) -> None:
        self._scheduler, self._settings = scheduler, settings
        self._initial = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self._rates: list[list[float]] = []
        self._shadow = self._running = None
        self.rates(0)

    def rates(self, epoch: int) -> list[float]:
        """Return the learning rate of each group in an epoch (0-based), before warm-up.

        Raises:
            ConfigError: if the scheduler ends before that epoch.
        """
        if self._running is None:
            self._shadow = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in self._initial])
            self._running = self._scheduler(self._shadow, **self._settings)
            self._rates.append([group["lr"] for group in self._shadow.param_groups])
        while len(self._rates) <= epoch:
            self._shadow.step()
            try:
                self._running.step()
            except (ValueError, ArithmeticError) as error:
                raise ConfigError(f"{self._scheduler.__name__} has no rate for epoch {len(self._rates)} (from 0): {error}") from error
            self._rates.append([group["lr"] for group in self._shadow.param_groups])
        return self._rates[epoch]


def _register_scheduler(scheduler: type[lr_scheduler.LRScheduler]) -> None:
    def build(optimizer: torch.optim.Optimizer, **settings: Any) -> EpochSchedule:
        return EpochSchedule(scheduler, optimizer, **settings)

    accepted = {name: a for name, a in arguments_of(scheduler, skip="optimizer").items() if name != "last_epoch"}  # the run knows its epoch
    build.__extra_arguments__ = lambda: accepted
    register(scheduler.__name__)(build)


for _scheduler in (lr_scheduler.MultiStepLR, lr_scheduler.CosineAnnealingLR, lr_scheduler.OneCycleLR):
    _register_scheduler(_scheduler)
