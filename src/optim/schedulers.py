"""Learning rate schedules as functions of the position in training, without state to restore."""

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
    """Return the learning rate of each parameter group of an optimizer."""

    def rates(self, epoch: int, share: float = 0.0) -> list[float]:
        """Return the rates before warm-up.

        Args:
            epoch: epoch from 0.
            share: fraction of the epoch that is done, 0..1.
        """


class EpochSchedule:
    """Wrap a torch scheduler that is stepped once per epoch as a function of the epoch.

    The scheduler runs on a copy of the optimizer's groups, so that warm-up and phases can scale the real
    rates without affecting it.
    """

    def __init__(
        self,
        scheduler: type[lr_scheduler.LRScheduler],
        optimizer: torch.optim.Optimizer,
        **settings: Any,
    ) -> None:
        self._name = scheduler.__name__
        self._initial = _initial_rates(optimizer)
        self._rates: list[list[float]] = []
        groups: list[dict[str, Any]] = []
        for lr in self._initial:
            groups.append(
                {"params": [torch.zeros(1, requires_grad=True)], "lr": lr}
            )
        self._shadow = torch.optim.SGD(groups)
        try:
            self._running = scheduler(self._shadow, **settings)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ConfigError(
                f"{scheduler.__name__} cannot be built: {error}"
            ) from error
        self._remember_rates()

    def rates(self, epoch: int, share: float = 0.0) -> list[float]:
        """Return the rates of an epoch (from 0) before warm-up; `share` is ignored.

        Raises:
            ConfigError: if the scheduler ends before this epoch.
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
    """Keep the full rate, decay it along a cosine, then keep the final rate (DEIM, Huang et al., 2024).

    The rate changes with every step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        flat_epochs: Annotated[int, LengthUnit("epochs", default=0.5)],
        end_epoch: Annotated[int, LengthUnit("epochs", default=1.0)],
        lr_gamma: float = 0.5,
    ) -> None:
        """Store the settings.

        Args:
            optimizer: optimizer whose groups have the full rates.
            flat_epochs: epoch in which the cosine starts; in a configuration without it, half of the run.
            end_epoch: epoch in which the cosine ends. The rate is constant from this epoch on, usually the
                first epoch of stage 2. In a configuration without it, the end of the run.
            lr_gamma: final rate as a fraction of the full rate, 0..1.

        Raises:
            ConfigError: if the cosine ends before it starts, or if `lr_gamma` is out of range.
        """
        if not 0 <= lr_gamma <= 1:
            raise ConfigError(
                f"FlatCosineLR.lr_gamma is {lr_gamma}, expected 0 to 1"
            )
        if flat_epochs > end_epoch:
            raise ConfigError(
                f"FlatCosineLR: the flat part ends in epoch {flat_epochs}, the cosine in epoch {end_epoch}, "
                f"expected end_epoch >= flat_epochs"
            )
        self._initial = _initial_rates(optimizer)
        self._gamma = lr_gamma
        self._flat = flat_epochs
        self._end = end_epoch

    def rates(self, epoch: int, share: float = 0.0) -> list[float]:
        """Return the rates before warm-up (`Schedule.rates`)."""
        length = max(self._end - self._flat, 1e-9)
        done = (epoch + share - self._flat) / length
        done = min(max(done, 0.0), 1.0)
        cosine = 1 + math.cos(math.pi * done)
        factor = self._gamma + (1 - self._gamma) * cosine / 2
        return [rate * factor for rate in self._initial]


_LENGTHS: dict[str, Any] = {
    "milestones": Sequence[EpochLength],
    "T_max": EpochLength,
    "total_steps": EpochLength | None,
}
"""Arguments of torch schedulers that are lengths; one scheduler step is one epoch here."""


def _initial_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return the full rates of all groups, and store them as `initial_lr` where they are not yet stored."""
    rates = []
    for group in optimizer.param_groups:
        rates.append(group.setdefault("initial_lr", group["lr"]))
    return rates


def _refuse_one_rate_for_many(
    name: str, max_lr: float, rates: list[float]
) -> None:
    """Raise if one rate would replace different rates of the parameter groups."""
    different = sorted(set(rates))
    if len(different) > 1:
        shown = ", ".join(f"{rate:.3g}" for rate in different[:8])
        raise ConfigError(
            f"{name}.max_lr is {max_lr:g} for all {len(rates)} parameter groups and would replace their own "
            f"rates ({shown}; from optimizer.params, layer_decay, unfreeze_lr_factor); set max_lr to a list "
            f"of {len(rates)} rates in the order of the groups, or use another schedule such as FlatCosineLR"
        )


def _register_scheduler(scheduler: type[lr_scheduler.LRScheduler]) -> None:
    def build(
        optimizer: torch.optim.Optimizer, **settings: Any
    ) -> EpochSchedule:
        if isinstance(settings.get("max_lr"), int | float):
            _refuse_one_rate_for_many(
                scheduler.__name__,
                settings["max_lr"],
                _initial_rates(optimizer),
            )
        return EpochSchedule(scheduler, optimizer, **settings)

    arguments = arguments_of(scheduler, skip="optimizer")
    del arguments["last_epoch"]  # the run knows its epoch
    accepted: dict[str, Argument] = {}
    for name, argument in arguments.items():
        annotation = _LENGTHS.get(name, argument.annotation)
        accepted[name] = Argument(argument.default, annotation)
    register(scheduler.__name__, extra_arguments=lambda: accepted)(build)


for _scheduler in (
    lr_scheduler.MultiStepLR,
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.OneCycleLR,
):
    _register_scheduler(_scheduler)
