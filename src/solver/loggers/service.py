"""The contract of a service, and the facts about a run that it gets. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .secrets import text_without_secrets


@dataclass(frozen=True)
class ServiceRun:
    """Facts about a run, without secrets (`secrets.py`)."""

    project: str
    """Project or experiment that collects runs."""
    name: str
    folder: Path
    """Output folder of the run."""
    config: Mapping[str, Any]
    """The resolved configuration, nested."""
    config_text: str
    """The same as YAML."""


class Opened(NamedTuple):
    """A run of a service that accepts values."""

    identifier: str
    """Identifier with which a later process continues the run."""
    place: str
    """Where a person finds the run: an address or a folder."""
    remark: str = ""
    """What the service does not get, and why, in one line without secrets."""


class Service(Protocol):
    """A logging service. Every method may raise any error; `service_process` tries again later."""

    def open(self, run: ServiceRun, identifier: str | None) -> Opened:
        """Open a run.

        Args:
            run: facts about the run.
            identifier: run to continue; None starts a new one.
        """

    def send_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the values of an optimizer step."""

    def send_epoch(
        self, epoch: int, step: int, scalars: Mapping[str, float]
    ) -> None:
        """Send the values of an epoch, from 1, that ended with an optimizer step."""

    def send_picture(self, epoch: int, name: str, file: Path) -> None:
        """Send a PNG file, whose name is `NAME_epoch0001.png`; it stays until the service is closed."""

    def send_result(
        self, metrics: Mapping[str, float], report: Path | None
    ) -> None:
        """Send the metrics of the best epoch, by names such as "AP", and the report."""

    def close(self, *, finished: bool) -> None:
        """Send what is waiting and end.

        Args:
            finished: whether the training is complete; otherwise it was stopped or has failed.
        """


def describe(error: BaseException) -> str:
    """Return the type and the first line of an error, without secrets."""
    lines = text_without_secrets(str(error)).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}" if lines[0] else repr(error)
    return text[:300]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted names; lists are values.

    Example:
        >>> flat({"optimizer": {"lr": 0.1}, "epochs": 3})
        {'optimizer.lr': 0.1, 'epochs': 3}
    """
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
