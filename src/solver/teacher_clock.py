"""The time that a teacher takes in training steps, measured without a host-device synchronization."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MAX_UNREAD = 200
"""Maximum number of passes on a GPU whose times wait to be read; further ones are not measured."""


class TeacherClock:
    """Mean seconds of the passes of a teacher.

    On a GPU, a pass is measured by two events in its queue of work. They are read after the host has waited
    for a later value anyway, such as a loss that is logged.
    """

    def __init__(self, device: torch.device) -> None:
        """Create a clock for the passes on a device."""
        self._device = device
        self._seconds = 0.0
        self._passes = 0
        self._unread: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Measure the body as one pass."""
        if self._device.type != "cuda":
            begin = time.perf_counter()
            yield
            self._add(time.perf_counter() - begin)
            return
        if len(self._unread) >= MAX_UNREAD:
            yield
            return
        begins = torch.cuda.Event(enable_timing=True)
        ends = torch.cuda.Event(enable_timing=True)
        begins.record()
        yield
        ends.record()
        self._unread.append((begins, ends))

    def mean(self) -> float | None:
        """Return the mean seconds of the passes that are over, or None before the first."""
        waiting = []
        for begins, ends in self._unread:
            if ends.query():
                self._add(begins.elapsed_time(ends) / 1000)
            else:
                waiting.append((begins, ends))
        self._unread = waiting
        return self._seconds / self._passes if self._passes else None

    def restart(self) -> None:
        """Discard all measurements."""
        self._seconds = 0.0
        self._passes = 0
        self._unread = []

    def _add(self, seconds: float) -> None:
        self._seconds += seconds
        self._passes += 1


def speed_without_teacher(
    images: int, seconds: float, steps: int, pass_seconds: float
) -> float:
    """Return about how many images per second the same steps would process without a teacher.

    Args:
        images: images of the steps, over all ranks.
        seconds: time of the steps.
        steps: number of steps.
        pass_seconds: mean time of the teacher in a step.

    Example:
        >>> speed_without_teacher(100, 10.0, 10, 0.5)
        20.0
    """
    left = max(seconds - steps * pass_seconds, 1e-9)
    return images / left
