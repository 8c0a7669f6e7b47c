"""Remember in the output folder which run of a service continues, and what was sent to it. Imports no torch.

Services append, so a value that is sent again is doubled. A resumed run repeats steps and perhaps an epoch:
what was sent already is left out.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATE = "logger.{}.json"
"""File in the output folder with the run of a service, by the word of the service."""

SECONDS_WITHOUT_TRAINER = 120.0
"""Time in which the last values are sent after the trainer was killed."""

LOCK_SECONDS = SECONDS_WITHOUT_TRAINER + 30.0
"""Time to wait for the process of the same run that still sends its last values."""


@dataclass
class LoggedState:
    """The run of a service and its last values."""

    path: Path
    mark: Mapping[str, Any] = field(default_factory=dict)
    """Entries by which the file is recognized as one of this project."""
    identifier: str | None = None
    step: int = -1
    """Last optimizer step that was sent."""
    epoch: int = 0
    """Last epoch that was sent, from 1."""
    pictures: dict[str, int] = field(default_factory=dict)
    """Epoch of the last picture by name."""

    @classmethod
    def load(cls, path: Path, mark: Mapping[str, Any]) -> LoggedState:
        """Read the state; that of a new run is empty, as is that of a damaged file."""
        state = cls(path, mark)
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            state.identifier = saved["run"]
            state.step = int(saved["step"])
            state.epoch = int(saved["epoch"])
            state.pictures = dict(saved["pictures"])
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path, mark)
        return state

    def save(self) -> None:
        """Write the state atomically."""
        content = {
            "run": self.identifier,
            "step": self.step,
            "epoch": self.epoch,
            "pictures": self.pictures,
            **self.mark,
        }
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(part, self.path)


def forget_runs(folder: Path) -> None:
    """Let the loggers of a new run in this folder start new runs."""
    for path in folder.glob(STATE.format("*")):
        path.unlink()


@contextmanager
def only_process(path: Path) -> Iterator[None]:
    """Wait until no other process writes to the same state. The lock ends with the process.

    Raises:
        TimeoutError: if another process does so for too long.
    """
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        "another process still sends values of this run"
                    ) from None
                time.sleep(0.1)
            except OSError:  # some file systems have no locks
                break
        yield
