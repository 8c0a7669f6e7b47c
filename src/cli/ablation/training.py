"""Train the runs of a study, several at a time, so that the study can be interrupted at any moment."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...core.paths import read_text
from ...runtime.files import is_in_use
from .records import (
    PREEMPTED,
    Part,
    Record,
    new_part,
    output_file,
    read_record,
    write_record,
)
from .runs import BEST, VIT, Run
from .teachers import write_vit

POLL_SECONDS = 0.2
"""Time between two looks at the processes."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Conditions:
    """Conditions under which runs are started."""

    results: Path
    variables: Mapping[str, str]
    jobs: int = 1
    minutes: float | None = None
    """No run starts after this time, and running ones are interrupted."""
    nice: int = 0
    trainer: tuple[str, ...] = ()
    """Command of the trainer; empty for `train.py`."""


@dataclass
class _Process:
    run: Run
    record: Record
    part: Part
    process: subprocess.Popen


def train_all(
    runs: Sequence[Run], conditions: Conditions, say: Callable[[str], None]
) -> list[Run]:
    """Train the runs that are not complete, and return those that failed.

    A run that was interrupted resumes from its last checkpoint. A run whose teacher is not complete waits for
    it, or is left out if the teacher fails or does not run.

    Args:
        runs: runs in the order in which they start; a teacher comes before its students.
        conditions: how runs are started.
        say: is called with a line about each start and end.
    """
    started = time.monotonic()
    waiting = [
        run
        for run in runs
        if not read_record(run, conditions.results).is_complete
    ]
    running: list[_Process] = []
    failed: list[Run] = []
    with _stop_requests() as stop:
        while waiting or running:
            for ended in _collect(running):
                if not _close(ended, conditions.results, say):
                    failed.append(ended.run)
            limit = conditions.minutes
            if limit is not None and time.monotonic() - started > 60 * limit:
                stop.ask(f"{limit:g} minutes are over")
            if stop.asked:
                if stop.is_new:
                    say(
                        f"{stop.reason}; runs that save their state: {len(running)}"
                    )
                    for process in running:
                        process.process.send_signal(signal.SIGTERM)
                if not running:
                    break
            elif len(running) < conditions.jobs:
                run = _next(waiting, conditions.results)
                if run is not None:
                    waiting.remove(run)
                    running += _start(run, conditions, say)
                    continue
                if not running:
                    break
            time.sleep(POLL_SECONDS)
    if not stop.asked:
        for run in waiting:
            say(f"left out: {name_of(run)} needs its teacher, which is missing")
    return failed


def name_of(run: Run) -> str:
    """Return the name of a run in messages."""
    return f"{run.group}, seed {run.seed}"


def _next(waiting: Sequence[Run], results: Path) -> Run | None:
    """Return the first run that can start now, or None."""
    for run in waiting:
        teacher = run.teacher
        if teacher is None or read_record(teacher, results).is_complete:
            return run
    return None


def _start(
    run: Run, conditions: Conditions, say: Callable[[str], None]
) -> list[_Process]:
    """Start a run; return nothing if another process trains it."""
    results = conditions.results
    folder = run.folder(results)
    if is_in_use(folder):
        say(f"left out: {name_of(run)} is trained by another process")
        return []
    if run.teacher is not None and run.needs_vit:
        source = run.teacher.folder(results)
        write_vit(source / BEST, source / VIT)
    record = read_record(run, results)
    if not record.parts:
        record.variables = dict(conditions.variables)
    record.error = ""
    part = new_part()
    record.parts.append(part)
    write_record(run, results, record)
    folder.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    output = os.open(output_file(run, results), flags, 0o666)
    try:
        process = subprocess.Popen(
            training_command(run, conditions),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches it from here, once
            preexec_fn=lambda: _prepare(conditions.nice),
        )
    finally:
        os.close(output)
    verb = "started" if len(record.parts) == 1 else "resumed"
    say(f"{verb}: {name_of(run)}")
    return [_Process(run, record, part, process)]


def training_command(run: Run, conditions: Conditions) -> list[str]:
    """Return the command that starts or resumes a run."""
    trainer = list(conditions.trainer)
    if not trainer:
        script = Path(__file__).resolve().parents[3] / "train.py"
        trainer = [sys.executable, str(script)]
    return [
        *trainer,
        "-c",
        run.config,
        f"--seed={run.seed}",
        "--output-dir",
        str(run.folder(conditions.results)),
        "-r",
        "auto",
        "-u",
        "report=False",
        *run.overrides(conditions.results, conditions.variables),
    ]


def _prepare(nice: int) -> None:
    """Prepare a new process: its priority, and a signal to save its state if this command is killed."""
    if nice:
        os.nice(nice)
    with suppress(OSError, AttributeError):  # systems other than Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _collect(running: list[_Process]) -> list[_Process]:
    """Remove and return the processes that have ended, with their CPU minutes and exit codes."""
    ended = []
    for process in list(running):
        pid, status, usage = os.wait4(process.process.pid, os.WNOHANG)
        if not pid:
            continue
        code = os.waitstatus_to_exitcode(status)
        process.process.returncode = code
        process.part.exit_code = code
        process.part.cpu_minutes = (usage.ru_utime + usage.ru_stime) / 60
        running.remove(process)
        ended.append(process)
    return ended


def _close(ended: _Process, results: Path, say: Callable[[str], None]) -> bool:
    """Record the end of a process; return False if its run failed."""
    run, record = ended.run, ended.record
    code = ended.part.exit_code
    was_stopped = code in (PREEMPTED, -signal.SIGTERM)
    record.is_complete = code == 0
    if code and not was_stopped:
        record.error = _last_line(output_file(run, results))
    if record.is_complete:
        _remove_training_state(run.folder(results))
    write_record(run, results, record)
    minutes = f"{record.cpu_minutes:.1f} CPU minutes"
    if record.is_complete:
        say(f"complete: {name_of(run)}, {minutes}")
    elif was_stopped:
        say(f"interrupted: {name_of(run)}, {minutes} so far")
    else:
        say(
            f"failed: {name_of(run)}: {record.error} (exit code {code}; "
            f"{output_file(run, results)})"
        )
    return record.is_complete or was_stopped


def _remove_training_state(folder: Path) -> None:
    """Remove what a complete run would resume from, which is several times as large as the model."""
    if not (folder / BEST).exists():
        return
    for name in ("last.pth", "last.previous.pth"):
        (folder / name).unlink(missing_ok=True)


def _last_line(path: Path) -> str:
    lines = read_text(path, errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "no output"


class _Stop:
    """A request to stop, by a signal or because time is over."""

    def __init__(self) -> None:
        self.reason = ""
        self._told = False

    @property
    def asked(self) -> bool:
        """True if the study has to stop."""
        return bool(self.reason)

    @property
    def is_new(self) -> bool:
        """Return True once, at the first look after the request."""
        was_told = self._told
        self._told = True
        return not was_told

    def ask(self, reason: str) -> None:
        """Request the end; only the first reason is kept."""
        self.reason = self.reason or reason


@contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """Turn Ctrl-C and SIGTERM into a request to stop."""
    stop = _Stop()

    def note(number: int, frame: object) -> None:
        stop.ask(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
