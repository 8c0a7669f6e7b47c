"""Signals that ask a run to stop: it ends the step, saves, and exits. A second one ends the process at once."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .log import logger

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""From a launcher or a cluster, from the keyboard, from Slurm ahead of a time limit, from a launcher or terminal that is gone."""

_PR_SET_PDEATHSIG = 1


class StopRequest:
    """Takes note of the first signal; the loop asks when it can stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take note while the body runs, in this process; its children end by such a signal as usual."""
        self._process = os.getpid()
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """True once a signal has come."""
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process or (
            self.asked and number != signal.SIGHUP
        ):  # a dying launcher may send it several times
            os._exit(128 + number)
        if self.asked:
            return
        self.signal = signal.Signals(number)
        os.write(
            2, f"{self.signal.name}: ending this step, then saving; once more ends at once\n".encode()
        )  # loggers may be busy


def end_with_launcher() -> None:
    """Ask the system to send SIGHUP to this process when the launcher that started it is gone: no orphans go on training."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)
    except (OSError, AttributeError):
        logger.warning(
            "this system cannot tie a process to its launcher; if torchrun is killed, end its workers by hand"
        )


def warn_of_unheard_signal() -> None:
    """On Slurm, log a warning if torchrun would die of SIGUSR1 instead of handing it on."""
    if "SLURM_JOB_ID" not in os.environ or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    try:
        launcher = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return
    if "SIGUSR1" not in launcher:
        logger.warning(
            "torchrun ends at SIGUSR1, which Slurm sends ahead of a time limit, and leaves its workers behind; start it with "
            "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 (docs/cluster.md)"
        )
