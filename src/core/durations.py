"""Lengths of parts of a run, given in epochs, in steps or as a share of the whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from .errors import ConfigError

Duration = int | float | str
"""How a configuration writes a length: a whole number (of the setting's own unit), a float up to 1.0 (share of the whole run), or a
text such as "5 epochs", "500 steps" or "10 %"."""

Unit = Literal["epochs", "steps"]

_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(epochs?|steps?|%)\s*")

_SLACK = 1e-9
"""0.7 * 10 shall be 7 although floats make it a little less."""


class Length(NamedTuple):
    """A length that has been read."""

    number: float
    unit: Literal["epochs", "steps", "share"]


@dataclass(frozen=True)
class RunLength:
    """How long a run is, which settles every `Duration`."""

    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def in_epochs(self, duration: Duration, name: str) -> int:
        """Return a length in whole epochs, rounded down; but what is more than nothing is one epoch at least.

        Args:
            duration: a whole number counts epochs.
            name: of the setting, for the message.
        """
        number, unit = read_duration(duration, name, "epochs")
        epochs = {
            "epochs": number,
            "share": number * self.epochs,
            "steps": number / max(self.steps_per_epoch, 1),
        }[unit]
        return max(int(epochs + _SLACK), int(number > 0))

    def in_steps(self, duration: Duration, name: str) -> int:
        """Return a length in steps; a whole number counts steps."""
        number, unit = read_duration(duration, name, "steps")
        steps = {"steps": number, "share": number * self.steps, "epochs": number * self.steps_per_epoch}[unit]
        return max(int(steps + _SLACK), int(number > 0))


@runtime_checkable
class KnowsRunLength(Protocol):
    """A part with lengths that may depend on the whole run's."""

    def set_run_length(self, run: RunLength) -> None:
        """Settle them. Called once, before the first step."""


def read_duration(duration: Any, name: str, unit: Unit) -> Length:
    """Read a length; `unit` is what a whole number counts.

    Raises:
        ConfigError: if it is none, or negative, or a share above 1.
    """
    if isinstance(duration, str) and (match := _TEXT.fullmatch(duration)):
        number, word = float(match[1]), match[2]
        if word != "%":
            return Length(number, "epochs" if word.startswith("epoch") else "steps")
        duration = number / 100
    if isinstance(duration, int) and not isinstance(duration, bool) and duration >= 0:
        return Length(duration, unit)
    if isinstance(duration, float) and 0 <= duration <= 1:
        return Length(duration, "share")
    raise ConfigError(
        f"{name} is {duration!r}, expected a whole number of {unit}, a share of the run from 0.0 to 1.0, or a text such as '5 epochs', "
        f"'500 steps' or '10 %'"
    )


def settled(duration: Duration | None, name: str, unit: Unit) -> int | None:
    """Return a length that depends on no run: a whole number of `unit`, or None. Others are settled by `set_run_length`.

    Raises:
        ConfigError: if it is no length.
    """
    if duration is None:
        return None
    number, given = read_duration(duration, name, unit)
    return int(number) if given == unit or not number else None


def settled_points(
    points: Sequence[Duration | None], name: str, run: RunLength | None = None
) -> tuple[int | None, ...]:
    """Return points in time as numbers of whole epochs.

    Args:
        points: None for never.
        name: of the setting, for the message.
        run: settles all of them; without it, those that depend on the run's length are None too.

    Raises:
        ConfigError: if one is no length, or less than one before it.
    """
    if run is None:
        epochs = tuple(settled(point, name, "epochs") for point in points)
    else:
        epochs = tuple(None if point is None else run.in_epochs(point, name) for point in points)
    known = [epoch for epoch in epochs if epoch is not None]
    if known != sorted(known):
        raise ConfigError(
            f"{name} is {list(points)}, which are the epochs {', '.join(map(str, known))}; none may come before the one on its left"
        )
    return epochs


def is_between(epoch: int, start: int | None, stop: int | None) -> bool:
    """Tell whether an epoch is `start` or later and before `stop`; None is no limit."""
    return (start is None or epoch >= start) and (stop is None or epoch < stop)
