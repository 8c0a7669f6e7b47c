"""The commands that run in processes of their own: the doctor, the training and the evaluation."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.errors import Preempted, RunError
from ...core.package_configs import configs_folder
from ...core.paths import read_text
from ...detection.run_checkpoint import BEST
from ..launch import reported_end, run_child, torchrun
from .job import Job

DOCTOR_REPORT = "doctor.json"


class StepFailed(RunError):
    """A command of a step has ended with an error, which it has reported itself."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def doctor_command(job: Job) -> list[str]:
    """Return the command that checks the machine."""
    words = ["-c", str(job.config), *_device(job)]
    words += ["--report", str(job.folder / DOCTOR_REPORT)]
    if job.quick:
        words.append("--quick")
    return [*_script(job, "tools/doctor.py"), *words, *_updates(job)]


def training_command(job: Job) -> list[str]:
    """Return the command that starts or resumes the training."""
    words = ["-c", str(job.config), "-r", "auto"]
    return [*_script(job, "train.py"), *words, *_of_run(job)]


def evaluation_command(job: Job) -> list[str]:
    """Return the command that evaluates the best checkpoint."""
    best = str(job.run_folder / BEST)
    words = ["-c", str(job.config), "--test-only", "-r", best]
    return [*_script(job, "train.py"), *words, *_of_run(job)]


def _of_run(job: Job) -> list[str]:
    words = ["--output-dir", str(job.run_folder), f"--seed={job.seed}"]
    return [*words, *_device(job), *_updates(job)]


def _device(job: Job) -> list[str]:
    return [] if job.device is None else ["-d", job.device]


def _updates(job: Job) -> list[str]:
    return ["-u", *job.updates] if job.updates else []


def _script(job: Job, name: str) -> list[str]:
    """Return the words that start a script of this clone, with torchrun if there are several processes."""
    script = str(configs_folder().parent / name)
    if job.processes == 1:
        return [sys.executable, script]
    return [*torchrun(job.processes), script]


def run_step(title: str, command: Sequence[str]) -> None:
    """Run the command of a step and wait for its end; a signal is passed on to it.

    Args:
        title: name of the step, used in messages.
        command: program and arguments.

    Raises:
        StepFailed: if it fails, with its exit code and message.
        Preempted: if a signal has ended it; its state is saved.
    """
    code, stopped_by = run_child(command)
    if stopped_by is not None:
        raise Preempted(
            f"{stopped_by.name} during the {title}; the same command continues from there"
        )
    if code == 0:
        return
    reported = _reported(command)
    if reported is not None:
        code, message = reported
    elif code > 128:
        message = f"it was ended by {_signal_name(code - 128)}"
    else:
        message = "its last lines give the reason"
    if code == Preempted.exit_code:
        raise Preempted(f"{message}; the same command continues from there")
    raise StepFailed(f"the {title} has failed: {message}", code)


def _signal_name(number: int) -> str:
    """Return the name of a signal, such as "SIGKILL"."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _reported(command: Sequence[str]) -> tuple[int, str] | None:
    """Return exit code and message of a failed command, which torchrun does not pass on; None if unknown."""
    if "--report" in command:
        report = read_doctor(Path(command[command.index("--report") + 1]))
        code = report.get("exit_code")
        if not isinstance(code, int) or code == 0:
            return None
        failed = []
        for check in report.get("checks", []):
            if check.get("status") == "failed":
                failed.append(f"{check.get('name')}: {check.get('text')}")
        return code, "; ".join(failed)
    return reported_end(command)


def read_doctor(path: Path) -> dict[str, Any]:
    """Return the report of the doctor; empty if there is none."""
    try:
        report = json.loads(read_text(path))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}
