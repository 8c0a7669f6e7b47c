"""Learning rates as functions of the position in training. Nothing here has state, so nothing can be lost on
resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import torch
from torch.optim import lr_scheduler

from ..core.durations import EpochLength, LengthUnit
from ..core.errors import ConfigError
from ..core.registry import Argument, arguments_of, register


class Schedule(Protocol):
    """Gives the learning rate of each group of an optimizer."""

    def rates(self, epoch: int, share: float = 0.0) -> list[float]:
        """Return the rates in an epoch (0-based) of which a share (0..1) is done, before warm-up."""


class EpochSchedule:
    """A torch scheduler that is stepped once an epoch, as a function from the epoch to the rate of each
    group.

    The scheduler runs over a shadow of the optimizer, so that warm-up and thawing can scale the real rates
    without the scheduler building on the scaled ones.
    """

    def __init__(
        self, scheduler: type[lr_scheduler.LRScheduler], optimizer: torch.optim.Optimizer, **settings: Any
    ) -> None:
        self._name = scheduler.__name__
        self._initial = _initial_rates(optimizer)
        self._rates: list[list[float]] = []
        self._shadow = torch.optim.SGD(
            [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in self._initial]
        )
        try:
            self._running = scheduler(self._shadow, **settings)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ConfigError(f"{scheduler.__name__} cannot be built: {error}") from error
        self._remember_rates()

    def rates(self, epoch: int, share: float = 0.0) -> list[float]:
        """Return the learning rate of each group in an epoch (0-based), before warm-up; `share` of it makes
        no difference.

        Raises:
            ConfigError: if the scheduler ends before that epoch.
        """
        while len(self._rates) <= epoch:
            self._shadow.step()
            try:
                self._running.step()
            except (ValueError, ArithmeticError) as error:
                raise ConfigError(
                    f"{self._name} has no rate for epoch {len(self._rates)} (from 0): {error}"
                ) from error
            self._remember_rates()
        return self._rates[epoch]

    def _remember_rates(self) -> None:
        self._rates.append([group["lr"] for group in self._shadow.param_groups])


@register()
class FlatCosineLR:
    """The full rate, then a cosine down to a part of it, then that part (DEIM, Huang et al., 2024), moving
    with every step."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        flat_epochs: Annotated[int, LengthUnit("epochs", default=0.5)],
        end_epoch: Annotated[int, LengthUnit("epochs", default=1.0)],
        lr_gamma: float = 0.5,
    ) -> None:
        """Store the settings.

        Args:
            optimizer: its groups' rates are the full ones.
            flat_epochs: epoch in which the cosine begins; half of the run in a configuration without it.
            end_epoch: epoch in which it ends; from there on the rate is constant, as the clean stage wants.
                The end of the run in a configuration without it.
            lr_gamma: fraction of the full rate that is reached then.

        Raises:
            ConfigError: if the cosine ends before it begins, or `lr_gamma` is out of range.
        """
        if not 0 <= lr_gamma <= 1:
            raise ConfigError(f"FlatCosineLR.lr_gamma is {lr_gamma}, expected 0 to 1")
        self._initial, self._gamma = _initial_rates(optimizer), lr_gamma
        if flat_epochs > end_epoch:
            raise ConfigError(
                f"FlatCosineLR: the flat part ends in epoch {flat_epochs}, the cosine in epoch {end_epoch}, "
                f"expected the second to be no earlier"
            )
        self._flat, self._end = flat_epochs, end_epoch

    def rates(self, epoch: int, share: float = 0.0) -> list[float]:
        """Return the learning rate of each group in an epoch (0-based) of which a share (0..1) is done,
        before warm-up."""
        done = min(max((epoch + share - self._flat) / max(self._end - self._flat, 1e-9), 0.0), 1.0)
        factor = self._gamma + (1 - self._gamma) * (1 + math.cos(math.pi * done)) / 2
        return [rate * factor for rate in self._initial]


_LENGTHS: dict[str, Any] = {
    "milestones": Sequence[EpochLength],
    "T_max": EpochLength,
    "total_steps": EpochLength | None,
}
"""Arguments of torch's schedulers that are lengths; a step of theirs is an epoch here."""


def _initial_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]


def _refuse_one_rate_for_many(name: str, max_lr: float, rates: list[float]) -> None:
    """A schedule that brings its own rate would overrule what groups of parameters were given."""
    different = sorted(set(rates))
    if len(different) > 1:
        shown = ", ".join(f"{rate:.3g}" for rate in different[:8])
        raise ConfigError(
            f"{name}.max_lr is {max_lr:g} for all {len(rates)} groups of parameters, so that their own rates "
            f"would not act ({shown}; from "
            f"optimizer.params, layer_decay, unfreeze_lr_factor); give max_lr as a list of {len(rates)} "
            f"rates in the order of the groups, "
            f"or take another schedule such as FlatCosineLR"
        )


def _register_scheduler(scheduler: type[lr_scheduler.LRScheduler]) -> None:
    def build(optimizer: torch.optim.Optimizer, **settings: Any) -> EpochSchedule:
        if isinstance(settings.get("max_lr"), int | float):
            _refuse_one_rate_for_many(scheduler.__name__, settings["max_lr"], _initial_rates(optimizer))
        return EpochSchedule(scheduler, optimizer, **settings)

    arguments = arguments_of(scheduler, skip="optimizer")
    del arguments["last_epoch"]  # the run knows its epoch
    accepted = {
        name: Argument(argument.default, _LENGTHS.get(name, argument.annotation))
        for name, argument in arguments.items()
    }
    register(scheduler.__name__, extra_arguments=lambda: accepted)(build)


for _scheduler in (lr_scheduler.MultiStepLR, lr_scheduler.CosineAnnealingLR, lr_scheduler.OneCycleLR):
    _register_scheduler(_scheduler)
