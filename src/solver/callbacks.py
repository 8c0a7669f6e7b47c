"""Functions of a user that a run calls: after a step, an evaluation, a save and an epoch.

They are called on the main rank only. An error in one of them is kept until the run has saved its state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.validate import did_you_mean
from ..runtime.log import logger
from ..runtime.stop import StopRequest

NAMES = ("on_step", "on_evaluation", "on_save", "on_epoch")
"""Names of callbacks, in the order in which an epoch calls them."""


@dataclass(frozen=True)
class StepEvent:
    """Argument of `on_step`: a step of the optimizer. Steps that are skipped because of NaN have no event."""

    epoch: int
    """Epoch, from 1."""
    step: int
    """Completed steps of this epoch."""
    steps_per_epoch: int
    total_steps: int
    """Completed steps of the run."""
    learning_rate: float
    """Largest learning rate of all parameter groups."""
    tensors: Mapping[str, Tensor] = field(repr=False)
    """Loss terms of this rank by name, on the device."""

    @cached_property
    def losses(self) -> dict[str, float]:
        """Loss terms by name. The first access waits for the device; not using them costs nothing."""
        values = torch.stack(list(self.tensors.values())).tolist()
        return dict(zip(self.tensors, values))

    @property
    def loss(self) -> float:
        """Sum of the loss terms; it waits for the device like `losses`."""
        return sum(self.losses.values())


@dataclass(frozen=True)
class EvaluationEvent:
    """Argument of `on_evaluation`: the metrics of an epoch, before its checkpoints are written."""

    epoch: int
    """Epoch, from 1."""
    metrics: dict[str, Any]
    """Metrics by name, such as "AP" and "F1"; None for undefined ones."""


@dataclass(frozen=True)
class SaveEvent:
    """Argument of `on_save`: a checkpoint that was written."""

    path: Path
    epoch: int
    """Epoch, from 1, of the weights."""

    @property
    def is_best(self) -> bool:
        """True for `best.pth`."""
        return self.path.name == "best.pth"


@dataclass(frozen=True)
class EpochEvent:
    """Argument of `on_epoch`: a completed epoch, after its checkpoints were written."""

    epoch: int
    """Epoch, from 1."""
    epochs: int
    """Epochs of the run."""
    row: dict[str, Any]
    """Losses, metrics, learning rates and times by column of `results.csv`; None for undefined ones."""
    is_best: bool
    """Whether the score of this epoch is the best so far."""


Callback = Callable[[Any], object]


class Callbacks:
    """The callbacks of a run."""

    def __init__(self, given: Any = None, stop: StopRequest | None = None):
        """Collect callbacks.

        Args:
            given: an object with methods that are named as in `NAMES`; a mapping from these names to
                functions; a sequence of these; or None.
            stop: request through which an error in a callback ends the run.

        Raises:
            ConfigError: if a name is unknown, an object has none of these methods, or a value is not a
                function.
        """
        self.stop = stop or StopRequest()
        self.failure: BaseException | None = None
        """First error of a callback."""
        self._functions: dict[str, list[Callback]] = {
            name: [] for name in NAMES
        }
        for item in _as_list(given):
            for name, function in _functions_of(item).items():
                self._functions[name].append(function)

    def has(self, name: str) -> bool:
        """Return whether there is a callback of this name, so that its event has to be made."""
        return bool(self._functions[name])

    def call(self, name: str, event: Any) -> None:
        """Call all callbacks of a name; after an error, the run is asked to stop and no more are called."""
        for function in self._functions[name]:
            if self.failure is not None:
                return
            try:
                function(event)
            except BaseException as error:
                self.failure = error
                logger.error(
                    "%s raised %s; the run ends after it has saved its state",
                    name,
                    type(error).__name__,
                )
                self.stop.ask(f"an error in {name}")

    def raise_failure(self) -> None:
        """Raise the error of a callback, if there was one, with its own traceback."""
        if self.failure is not None:
            raise self.failure


def _as_list(given: Any) -> Sequence[Any]:
    if given is None:
        return []
    return given if isinstance(given, list | tuple) else [given]


def _functions_of(item: Any) -> dict[str, Callback]:
    """Return the callbacks of a mapping or an object by name."""
    if isinstance(item, Mapping):
        found = dict(item)
        for name in found:
            if name not in NAMES:
                raise ConfigError(
                    f"{name!r} is not a callback{did_you_mean(str(name), NAMES)}; expected "
                    f"{', '.join(NAMES)}"
                )
    else:
        found = {
            name: getattr(item, name) for name in NAMES if hasattr(item, name)
        }
        if not found:
            names = " or ".join(NAMES)
            raise ConfigError(
                f"callbacks has a {type(item).__name__} without a method {names}; pass an object "
                'with these methods, or a dict such as {"on_epoch": function}'
            )
    for name, function in found.items():
        if not callable(function):
            raise ConfigError(
                f"the callback {name} is a {type(function).__name__}, expected a function"
            )
    return found
