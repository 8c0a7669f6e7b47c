"""Progress of ranks: each notes its step, and writes its stack if a step takes too long, so that a hang can be explained."""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path
from typing import TextIO

from .distributed import rank, tell_stacks, tell_step, world_size


class Watchdog:
    """Watches over the steps of one rank of several; alone, it does nothing."""

    def __init__(self, folder: Path, timeout: float) -> None:
        """Store.

        Args:
            folder: for `stacks.rankN.txt`, which stays only if something was written.
            timeout: seconds after which a step is too long.
        """
        self.timeout, self.path = timeout, folder / f"stacks.rank{rank()}.txt"
        self._file: TextIO | None = None

    def beat(self, step: int) -> None:
        """Note that a step begins."""
        if world_size() == 1:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = open(os.open(self.path, flags, 0o666), "w", encoding="utf-8")  # noqa: SIM115  see rest
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
