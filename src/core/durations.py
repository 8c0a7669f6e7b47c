"""Lengths of parts of a run: their forms in a configuration and their conversion to integers."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from .errors import ConfigError

Duration = int | float | str
"""A length in a configuration: an integer (in the setting's own unit), a float up to 1.0 (fraction of the
whole run), or a text such as "5 epochs", "500 steps" or "10 %"."""

Unit = Literal["epochs", "steps"]


@dataclass(frozen=True)
class LengthUnit:
    """Annotation of a constructor argument that is a length.

    The class gets an integer. A configuration may use any `Duration`, which `core.lengths` converts.
    """

    unit: Unit
    """Unit of the integer."""
    default: float | None = None
    """Default as a fraction of the run, for a missing or null setting; None uses the signature's default."""
    before_data: bool = False
    """True if the number is needed before the data are read; it then cannot be given in steps."""


EpochLength = Annotated[int, LengthUnit("epochs")]
"""Type of an argument that counts epochs."""

StepLength = Annotated[int, LengthUnit("steps")]
"""Type of an argument that counts optimizer steps."""

LoaderEpochLength = Annotated[int, LengthUnit("epochs", before_data=True)]
"""Type of an argument that counts epochs, in a component of a data loader."""

_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(epochs?|steps?|%)\s*")

_SLACK = 1e-9
"""Tolerance that makes 0.7 * 10 round to 7 despite floating-point error."""


class Length(NamedTuple):
    """A parsed length."""

    number: float
    unit: Literal["epochs", "steps", "share"]


class StepsUnknownError(ConfigError):
    """A length depends on the number of steps in an epoch, which is known only after the data are read."""


@dataclass(frozen=True)
class RunLength:
    """Length of a run, which converts every `Duration` to an integer."""

    epochs: int
    steps_per_epoch: int | None = None
    """Optimizer steps in an epoch; None until the training data have been read."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run.

        Raises:
            StepsUnknownError: if the number of steps in an epoch is not known.
        """
        if self.steps_per_epoch is None:
            raise StepsUnknownError(
                "the number of steps in the run is known only after the data are read"
            )
        return self.epochs * self.steps_per_epoch

    def in_epochs(self, duration: Duration, name: str) -> int:
        """Return a length in whole epochs, rounded down, but at least 1 if the length is above 0.

        Args:
            duration: the length; an integer is a number of epochs.
            name: name of the setting, for messages.

        Raises:
            ConfigError: if it is not a length.
            StepsUnknownError: if it is given in steps and their number in an epoch is not known.
        """
        return self.resolve(duration, "epochs", name)

    def in_steps(self, duration: Duration, name: str) -> int:
        """Return a length in whole steps, as `in_epochs` does; an integer is a number of steps."""
        return self.resolve(duration, "steps", name)

    def resolve(self, duration: Duration, unit: Unit, name: str) -> int:
        """Return a length as an integer number of `unit`; see `in_epochs`."""
        number, given = read_duration(duration, name, unit)
        if given == unit or not number:
            exact = number
        elif given == "share":
            exact = number * (self.steps if unit == "steps" else self.epochs)
        elif unit == "steps":
            exact = number * self._steps_per_epoch(duration, name)
        else:
            exact = number / max(self._steps_per_epoch(duration, name), 1)
        return max(int(exact + _SLACK), int(number > 0))

    def _steps_per_epoch(self, duration: Duration, name: str) -> int:
        if self.steps_per_epoch is None:
            raise StepsUnknownError(
                f"{name} is {duration!r}, but the number of steps in an epoch is known only after the data "
                "are read"
            )
        return self.steps_per_epoch


def length_unit(annotation: Any) -> LengthUnit | None:
    """Return the unit of a type such as `EpochLength` or `EpochLength | None`; None if it is not a length."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        units = [extra for extra in arguments if isinstance(extra, LengthUnit)]
        return units[0] if units else None
    others = [argument for argument in arguments if argument is not type(None)]
    return length_unit(others[0]) if len(others) == 1 < len(arguments) else None


def read_duration(duration: Any, name: str, unit: Unit) -> Length:
    """Parse a length.

    Args:
        duration: the value in the configuration.
        name: name of the setting, for messages.
        unit: unit of an integer.

    Raises:
        ConfigError: if it is not a length, is negative, or is a fraction above 1.
    """
    match = _TEXT.fullmatch(duration) if isinstance(duration, str) else None
    if match:
        number = float(match[1])
        word = match[2]
        if word != "%":
            return Length(
                number, "epochs" if word.startswith("epoch") else "steps"
            )
        duration = number / 100
    if (
        isinstance(duration, int)
        and not isinstance(duration, bool)
        and duration >= 0
    ):
        return Length(duration, unit)
    if isinstance(duration, float) and 0 <= duration <= 1:
        return Length(duration, "share")
    raise ConfigError(
        f"{name} is {duration!r}, expected an integer number of {unit}, a fraction of the run from 0.0 to "
        "1.0, or a text such as '5 epochs', '500 steps' or '10 %'"
    )


def check_ascending(epochs: Sequence[int | None], name: str) -> None:
    """Check that points in time are in ascending order.

    Args:
        epochs: epochs from 0; None stands for "not at all" and is not compared.
        name: name of the setting, for messages.

    Raises:
        ConfigError: if an epoch is smaller than one on its left.
    """
    known = [epoch for epoch in epochs if epoch is not None]
    if known != sorted(known):
        shown = ", ".join(map(str, known))
        raise ConfigError(
            f"{name} is {list(epochs)}, which are the epochs {shown}; they must be in ascending order"
        )


def is_between(epoch: int, start: int | None, stop: int | None) -> bool:
    """Return whether an epoch is `start` or later and before `stop`; None sets no limit."""
    return (start is None or epoch >= start) and (stop is None or epoch < stop)
