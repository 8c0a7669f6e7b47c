"""Record of the steps that are done, so that a second call continues where the first one ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from ...core.errors import CheckpointError, ConfigError
from ...core.paths import read_text
from ...core.schemas import checked
from ...runtime.own_files import prepare_report, write_report

Inputs = dict[str, Any]
"""What a step depends on, by name: values that JSON has."""

_ADVICE = "delete it to repeat all steps, of which the training resumes"


class DoneStep(msgspec.Struct, frozen=True):
    """A step that was completed."""

    inputs: Inputs
    finished: str
    """Time in UTC, ISO 8601."""
    notes: Inputs = {}
    """Results that later steps read."""


class _Content(msgspec.Struct):
    """Content of the file."""

    steps: dict[str, DoneStep] = {}
    sessions: list[Inputs] = []


class Record:
    """Steps that are done, and the machines on which the training ran, in a JSON file.

    The file is replaced as a whole after every change, so a killed process leaves a complete one.
    """

    def __init__(self, path: Path) -> None:
        """Read the file, if it exists.

        Raises:
            ConfigError: if the file cannot be written, or is damaged or not of this project.
        """
        prepare_report(path, "--output-dir")
        self.path = path
        self._content = _Content()
        if not path.exists():
            return
        try:
            values = json.loads(read_text(path))
            self._content = checked(
                values, _Content, file=path, part="", advice=_ADVICE
            )
        except (ValueError, CheckpointError) as error:
            raise ConfigError(
                f"{path} cannot be used ({error}); {_ADVICE}"
            ) from None

    def is_done(self, step: str, inputs: Mapping[str, Any]) -> bool:
        """Return whether a step was completed with exactly these inputs."""
        done = self._content.steps.get(step)
        return done is not None and done.inputs == _as_json(inputs)

    def changes(self, step: str, inputs: Mapping[str, Any]) -> list[str]:
        """Return the inputs that differ from those with which a step was recorded, as texts for a message."""
        recorded = self._content.steps.get(step)
        if recorded is None:
            return []
        present = _as_json(inputs)
        changes = []
        for name in sorted({*recorded.inputs, *present}):
            old, new = recorded.inputs.get(name), present.get(name)
            if old != new:
                changes.append(f"{name} was {old}, is {new}")
        return changes

    def notes(self, step: str) -> Inputs:
        """Return the results of a step; empty if it is not done."""
        done = self._content.steps.get(step)
        return {} if done is None else done.notes

    def add(
        self,
        step: str,
        inputs: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that a step is done, and write the file."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        done = DoneStep(_as_json(inputs), now, _as_json(notes or {}))
        self._content.steps[step] = done
        self._write()

    @property
    def sessions(self) -> list[Inputs]:
        """Machine and code of each call that has trained, in order, without repetitions."""
        return self._content.sessions

    def add_session(self, session: Mapping[str, Any]) -> None:
        """Record a machine and the version of the code before the training starts or resumes on it."""
        entry = _as_json(session)
        if not self.sessions or self.sessions[-1] != entry:
            self.sessions.append(entry)
            self._write()

    def _write(self) -> None:
        write_report(self.path, msgspec.to_builtins(self._content))


def _as_json(values: Mapping[str, Any]) -> Inputs:
    """Return values as they are after they were written and read: tuples become lists."""
    return json.loads(json.dumps(dict(values)))
