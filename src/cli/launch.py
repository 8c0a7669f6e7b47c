"""Start the trainer for `dfine train`, `resume` and `val`: in this process, or one process for each GPU."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
"""Signals that are passed on to the processes of a run."""


def add_gpus_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--gpus`."""
    parser.add_argument(
        "--gpus",
        type=int,
        default=1,
        metavar="N",
        help="number of GPUs; starts one process for each; with -d cpu: number of processes",
    )


def run_trainer(
    make_arguments: Callable[[], list[str]], arguments: argparse.Namespace
) -> None:
    """Run the trainer with the arguments that a function returns, and end the process with its exit code.

    Args:
        make_arguments: returns arguments of `train.py`; its errors are reported as those of a command.
        arguments: parsed arguments, with `gpus` and `debug`.
    """
    from ..runtime.log import set_up_logging
    from ..runtime.process import run_command

    words: list[str] = []

    def prepare() -> None:
        set_up_logging(speaks=True, debug=arguments.debug)
        _check_number(arguments.gpus)
        words.extend(make_arguments())

    try:
        run_command(prepare, debug=arguments.debug)
    except SystemExit as end:
        if end.code:
            raise
    if arguments.gpus > 1:
        sys.exit(run_processes(words, arguments.gpus))
    from . import trainer

    trainer.main(words)


def _check_number(gpus: int) -> None:
    from ..core.errors import ConfigError

    if gpus < 1:
        raise ConfigError(f"--gpus is {gpus}, expected at least 1")


def run_processes(words: Sequence[str], number: int) -> int:
    """Run the trainer in several processes with torchrun, and return its exit code.

    Signals are passed on: the processes save their state and end, as a single one does.

    Args:
        words: arguments of `train.py`.
        number: number of processes.
    """
    from ..solver.next_commands import DFINE_GPUS

    command = [*torchrun_command(number), *words]
    code, _ = run_child(command, {DFINE_GPUS: str(number)})
    reported = reported_end(words)
    if not code or reported is None:
        return code
    # once more, because torchrun writes pages after it
    sys.stderr.write(f"error[{reported[0]}]: {reported[1]}\n")
    return reported[0]


class ChildEnded(NamedTuple):
    """The end of a process that this one has started."""

    code: int
    """Exit code; 128 and the number of the signal if a signal ended it."""
    stopped_by: signal.Signals | None
    """First signal that was passed on to it."""


def run_child(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> ChildEnded:
    """Run a command, pass on the signals that stop a run, and wait for its end.

    Args:
        command: program and arguments.
        environment: variables that are added to those of this process.
    """
    from ..runtime.hangup import without_ignored_hangup

    received: list[signal.Signals] = []
    early: list[int] = []
    before: dict[signal.Signals, Any] = {}
    process: subprocess.Popen | None = None

    def pass_on(number: int, frame: object) -> None:
        received.append(signal.Signals(number))
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    wanted = [signal.Signals[name] for name in STOP_SIGNALS]
    for number in without_ignored_hangup(wanted):
        before[number] = signal.signal(number, pass_on)
    try:
        # in a session of its own: Ctrl-C of a terminal reaches the processes once, from here
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        while early:  # signals that came before the process was known
            process.send_signal(early.pop())
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    first = received[0] if received else None
    return ChildEnded(128 - code if code < 0 else code, first)


def torchrun_command(number: int) -> list[str]:
    """Return the command that starts the trainer in several processes, without its arguments."""
    package = __name__.partition(".")[0]
    launcher = torchrun(number)
    script = Path(__file__).resolve().parents[2] / "train.py"
    if package == "src" and script.is_file():
        # as a file: a folder `src` in the current one would be found first
        return [*launcher, str(script)]
    return [*launcher, "-m", f"{package}.cli.trainer"]


def torchrun(number: int) -> list[str]:
    """Return the words that start a script in several processes on this machine."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={number}",
    ]


def reported_end(words: Sequence[str]) -> tuple[int, str] | None:
    """Return exit code and message of a failed run, which torchrun does not pass on; None if unknown."""
    from ..core.paths import read_text
    from ..runtime.process import STATUS_FILE

    if "--output-dir" not in words:
        return None
    folder = words[words.index("--output-dir") + 1]
    try:
        status = json.loads(read_text(Path(folder) / STATUS_FILE))
        code, message = status["exit_code"], status["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if isinstance(code, int) and code:
        return code, str(message)
    return None
