"""Decide when a line about progress is due where no progress bar is shown."""

from __future__ import annotations

import time
from collections.abc import Callable

LONGEST_SILENCE = 30.0
"""Maximum seconds between two lines, unless a single step takes longer."""


class Pace:
    """Return True from `is_due` at most once in a number of seconds.

    Example:
        >>> times = iter([0.0, 10.0, 30.0, 31.0])
        >>> pace = Pace(30.0, clock=lambda: next(times))
        >>> [pace.is_due() for _ in range(3)]
        [False, True, False]
    """

    def __init__(
        self,
        seconds: float = LONGEST_SILENCE,
        *,
        at_once: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store the arguments.

        Args:
            seconds: time between two lines.
            at_once: whether the first line is due immediately; otherwise it is due after `seconds`.
            clock: function that returns the time in seconds.
        """
        self.seconds = seconds
        self._clock = clock
        self._last = float("-inf") if at_once else clock()

    def is_due(self) -> bool:
        """Return whether a line is due now, and if so, start to wait for the next one."""
        now = self._clock()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True

    def restart(self) -> None:
        """Wait for the whole time again, because a line was written for another reason."""
        self._last = self._clock()
