"""Explain hangs: each rank notes its step, and writes its stack to a file if a step takes too long."""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path
from typing import TextIO

from .distributed import rank, tell_stacks, tell_step, world_size


class Watchdog:
    """Watch the steps of one rank of several; in a single process, do nothing."""

    def __init__(self, folder: Path, timeout: float) -> None:
        """Store the settings.

        Args:
            folder: folder for `stacks.rankN.txt`, which is kept only if a stack was written.
            timeout: maximum seconds of a step.
        """
        self.timeout = timeout
        self.path = folder / f"stacks.rank{rank()}.txt"
        self._file: TextIO | None = None

    def beat(self, step: int) -> None:
        """Record that a step begins."""
        if world_size() == 1:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = (
                os.O_WRONLY
                | os.O_CREAT
                | os.O_TRUNC
                | os.O_NOFOLLOW
                | os.O_CLOEXEC
            )
            descriptor = os.open(self.path, flags, 0o666)
            self._file = open(descriptor, "w", encoding="utf-8")  # noqa: SIM115  closed by `rest`
            tell_stacks(self.path)
        tell_step(step)
        faulthandler.dump_traceback_later(self.timeout, file=self._file)

    def rest(self) -> None:
        """Stop watching."""
        if self._file is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._file = None
        if not self.path.stat().st_size:
            self.path.unlink()
