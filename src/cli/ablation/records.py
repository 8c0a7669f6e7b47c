"""The record of a run: its parts, its state and the scores of its epochs.

A run that was interrupted has several parts, whose CPU minutes are added.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from ...core.errors import CheckpointError
from ...core.paths import read_text
from ...core.schemas import checked
from ...core.yaml_text import dump_yaml
from ...runtime.files import is_in_use, write_atomically, write_json
from ...runtime.processor import processor_name
from .runs import Run

COMPLETE = "complete"
FAILED = "failed"
INTERRUPTED = "interrupted"
RUNNING = "running"
NOT_STARTED = "not started"

PREEMPTED = 75
"""Exit code of a trainer that has saved its state after a signal."""


@dataclass
class Part:
    """One process of a run."""

    commit: str
    """Commit of the code, with "+" if files were changed."""
    torch: str
    processor: str
    cpu_minutes: float | None = None
    """None if the process was killed together with this command."""
    exit_code: int | None = None


@dataclass
class Record:
    """The record of a run, which is kept beside its folder."""

    variables: dict[str, str] = field(default_factory=dict)
    """Values of `--set` at the start of the run."""
    parts: list[Part] = field(default_factory=list)
    error: str = ""
    """Last line of the output of a run that failed."""
    is_complete: bool = False

    @property
    def cpu_minutes(self) -> float:
        """CPU minutes of all parts that are known."""
        return sum(part.cpu_minutes or 0.0 for part in self.parts)

    @property
    def lost_minutes(self) -> bool:
        """True if the CPU minutes of a part are not known."""
        return any(part.cpu_minutes is None for part in self.parts)


@dataclass(frozen=True)
class Epoch:
    """Scores of an epoch. AP is in 0..1."""

    number: int
    """Counted from 1."""
    ap: float
    ap50: float
    loss: float
    steps: int | None
    """Optimizer steps of the run so far; None if the log does not have them."""


@dataclass(frozen=True)
class Outcome:
    """The results of a complete run."""

    record: Record
    epochs: list[Epoch]

    @property
    def best(self) -> Epoch:
        """Epoch with the highest AP, the first one of several."""
        return max(self.epochs, key=lambda epoch: epoch.ap)

    @property
    def last(self) -> Epoch:
        """Last epoch."""
        return self.epochs[-1]


def record_file(run: Run, results: Path) -> Path:
    """Return the file of the record of a run."""
    folder = run.folder(results)
    return folder.with_name(f"{folder.name}.json")


def output_file(run: Run, results: Path) -> Path:
    """Return the file of what the trainer prints."""
    folder = run.folder(results)
    return folder.with_name(f"{folder.name}.out")


def read_record(run: Run, results: Path) -> Record:
    """Return the record of a run, empty if it has not started.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = record_file(run, results)
    if not path.exists():
        return Record()
    advice = "remove it to repeat the run"
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not JSON: {error}; {advice}"
        ) from None
    return checked(content, Record, file=path, part="", advice=advice)


def write_record(run: Run, results: Path, record: Record) -> None:
    """Write the record of a run, and its settings for readers."""
    path = record_file(run, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(record))
    settings = path.with_name("settings.yml")
    if not settings.exists():
        text = dump_yaml(json.loads(json.dumps(run.resolved, default=str)))
        write_atomically(settings, lambda file: file.write(text.encode()))


def state_of(run: Run, results: Path) -> str:
    """Return the state of a run, as shown to users."""
    if is_in_use(run.folder(results)):
        return RUNNING
    record = read_record(run, results)
    if record.is_complete:
        return COMPLETE
    if record.error:
        return FAILED
    if record.parts:
        return INTERRUPTED
    return NOT_STARTED


def read_outcome(run: Run, results: Path) -> Outcome | None:
    """Return the results of a run, or None if it is not complete.

    Raises:
        CheckpointError: if the record or the log is damaged.
    """
    record = read_record(run, results)
    if not record.is_complete:
        return None
    return Outcome(record, read_epochs(run.folder(results) / "log.txt"))


class _LogLine(msgspec.Struct):
    """The keys of a line of `log.txt` that are used."""

    epoch: int
    AP: float | None = None
    AP50: float | None = None
    train_loss: float | None = None
    steps: int | None = None


def read_epochs(path: Path) -> list[Epoch]:
    """Return the epochs of a `log.txt`.

    Raises:
        CheckpointError: if the file is missing, empty or damaged.
    """
    advice = "remove the folder of the run and its .json file to repeat it"
    try:
        lines = read_text(path).splitlines()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}; {advice}"
        ) from None
    found = []
    for number, text in enumerate(lines, 1):
        part = f"line {number}"
        try:
            content = json.loads(text)
        except ValueError:
            raise CheckpointError(
                f"{path}: {part} is not JSON; {advice}"
            ) from None
        line = checked(content, _LogLine, file=path, part=part, advice=advice)
        found.append(
            Epoch(
                number=line.epoch + 1,
                ap=_number(line.AP),
                ap50=_number(line.AP50),
                loss=math.nan if line.train_loss is None else line.train_loss,
                steps=line.steps,
            )
        )
    if not found:
        raise CheckpointError(f"{path} has no epoch; {advice}")
    return found


def _number(score: float | None) -> float:
    """Return a score; one that is not defined, because nothing was detected, counts as 0."""
    if score is None or not math.isfinite(score):
        return 0.0
    return max(score, 0.0)


def new_part() -> Part:
    """Return the record of a process that starts now."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "unknown"
    return Part(
        commit=commit_of_code(), torch=torch, processor=processor_name()
    )


def commit_of_code() -> str:
    """Return the commit of the code, with "+" if tracked files were changed; "unknown" without git."""
    folder = Path(__file__).resolve().parent
    head = _git(folder, "rev-parse", "--short=10", "HEAD")
    if not head:
        return "unknown"
    is_changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return head + ("+" if is_changed else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        ended = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except OSError:
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""


def summary_of_parts(outcomes: Mapping[Any, Outcome]) -> dict[str, list[str]]:
    """Return the different commits, torch versions and processors of some runs."""
    found: dict[str, dict[str, None]] = {
        "commits": {},
        "torch": {},
        "processors": {},
    }
    for outcome in outcomes.values():
        for part in outcome.record.parts:
            found["commits"][part.commit] = None
            found["torch"][part.torch] = None
            found["processors"][part.processor] = None
    return {name: list(values) for name, values in found.items()}
