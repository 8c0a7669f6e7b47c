"""Handle signals that stop a run: it finishes the step, saves and exits. A second signal ends it at once."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .hangup import without_ignored_hangup
from .log import logger

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""Sent by a launcher, a cluster or Ctrl-C; by Slurm before a time limit; when a launcher or terminal ends."""

_PR_SET_PDEATHSIG = 1

_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Environment variable of processes that torchrun has started."""


class StopRequest:
    """Record the first signal; the training loop checks it where it can stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.reason: str | None = None
        """Reason other than a signal (`ask`)."""
        self._process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals to this process while the body runs; child processes end by a signal as usual."""
        self._process = os.getpid()
        # torchrun's processes get SIGHUP when torchrun ends, also with nohup
        is_launched = _TORCHRUN in os.environ
        signals = SIGNALS if is_launched else without_ignored_hangup(SIGNALS)
        before = {
            number: signal.signal(number, self._note) for number in signals
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """True if a signal was received or the program has asked."""
        return self.signal is not None or self.reason is not None

    def ask(self, reason: str) -> None:
        """Request the end of the run without a signal; only the first reason is kept."""
        self.reason = self.reason or reason

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: record the first one; end child processes, and the run at a second signal."""
        is_child = os.getpid() != self._process
        # a launcher may send SIGHUP several times
        is_repeated = self.signal is not None and number != signal.SIGHUP
        if is_child or is_repeated:
            os._exit(128 + number)
        if self.signal is not None:
            return
        self.signal = signal.Signals(number)
        text = f"{self.signal.name}: finishing this step, then saving; a second signal ends the run at once\n"
        os.write(2, text.encode())  # a signal handler must not use loggers


def end_with_launcher() -> None:
    """Request SIGHUP for this process when its launcher ends, so that no orphan continues to train."""
    if _TORCHRUN not in os.environ:
        return
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)
    except (OSError, AttributeError):
        logger.warning(
            "this system cannot end a process with its launcher; if torchrun is killed, end its workers "
            "manually"
        )


def warn_of_unheard_signal() -> None:
    """Log a warning on Slurm if torchrun would end on SIGUSR1 instead of forwarding it."""
    if "SLURM_JOB_ID" not in os.environ or _TORCHRUN not in os.environ:
        return
    command_line = Path(f"/proc/{os.getppid()}/cmdline")
    try:
        launcher = command_line.read_bytes().decode(errors="replace")
    except OSError:
        return
    if "SIGUSR1" not in launcher:
        logger.warning(
            "torchrun ends on SIGUSR1, which Slurm sends before a time limit, without ending its workers; "
            "start it with --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 (docs/cluster.md)"
        )
