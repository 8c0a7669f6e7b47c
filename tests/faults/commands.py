"""Training as users start it, in the background, with signals sent at chosen moments."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.fixtures.ports import free_port
from tests.fixtures.progress import wait_until
from tests.fixtures.tiny import ROOT


class Training:
    """A running `train.py`, alone or under torchrun; its processes never outlive the block."""

    def __init__(
        self,
        output: Path,
        *arguments: str | Path,
        ranks: int = 1,
        per_agent: int | None = None,
        launcher: tuple[str, ...] = (),
        text: str = "stdout",
        **environment: str,
    ) -> None:
        """Start the command.

        Args:
            output: output folder.
            arguments: arguments of `train.py`.
            ranks: number of ranks on this machine.
            per_agent: instead, ranks per torchrun agent, for several agents; `launcher` has their rendezvous.
            launcher: additional arguments of torchrun.
            text: suffix of the file that receives the output.
            environment: additional environment variables.
        """
        command = [sys.executable]
        if ranks > 1 or per_agent:
            meeting = [] if per_agent else [f"--master_port={free_port()}"]
            command += [
                "-m",
                "torch.distributed.run",
                f"--nproc_per_node={per_agent or ranks}",
                *meeting,
                *launcher,
            ]
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            **environment,
        }
        self.output = output
        self.text = output.with_suffix(f".{text}")
        with open(self.text, "w") as out:
            self.process = subprocess.Popen(
                [
                    *command,
                    "train.py",
                    *map(str, arguments),
                    "--output-dir",
                    str(output),
                ],
                cwd=ROOT,
                env=env,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Training:
        return self

    def __exit__(
        self,
        kind: type | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pids = [*self.workers(), self.process.pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        return self.text.read_text(errors="replace")

    def wait_for(self, pattern: str) -> None:
        """Wait until the output has a line that matches."""

        def found() -> bool:
            ended = self.process.poll() is not None
            matches = re.search(pattern, self.said()) is not None
            assert matches or not ended, self.said()
            return matches

        wait_until(found, self.process.pid, self.said)

    def send(self, number: signal.Signals, pid: int | None = None) -> None:
        os.kill(pid or self.process.pid, number)

    def workers(self) -> list[int]:
        """Return the processes of the ranks, in the order of their numbers."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                environment = dict(
                    item.partition("=")[::2]
                    for item in (stat.parent / "environ")
                    .read_text()
                    .split("\0")
                )
            except (OSError, ValueError):
                continue
            if int(fields[1]) == self.process.pid and "RANK" in environment:
                found[int(environment["RANK"])] = int(stat.parent.name)
        return [found[number] for number in sorted(found)]

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        wait_until(
            lambda: self.process.poll() is not None, self.process.pid, self.said
        )
        return self.process.returncode

    def status(self) -> dict:
        return json.loads((self.output / "run_status.json").read_text())


def wait_for_any(trainings: tuple[Training, ...], pattern: str) -> Training:
    """Wait until one of several has a line that matches, and return it."""

    def first() -> Training | None:
        return next(
            (
                training
                for training in trainings
                if re.search(pattern, training.said())
            ),
            None,
        )

    wait_until(
        lambda: first() is not None,
        trainings[0].process.pid,
        lambda: "\n".join(training.said() for training in trainings),
    )
    return first()


def wait_until_gone(pid: int, describe: Callable[[], str]) -> None:
    """Wait until a process has ended; one that nobody has waited for counts as ended."""

    def is_gone() -> bool:
        try:
            return (
                Path(f"/proc/{pid}/stat")
                .read_text()
                .rpartition(")")[2]
                .split()[0]
                == "Z"
            )
        except OSError:
            return True

    wait_until(is_gone, pid, describe)
