"""Python's warning filters, which all threads of a process share."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class _IgnoredWarnings:
    """A filter that ignores all warnings while at least one thread needs it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._context = warnings.catch_warnings()
        self._before: object = None
        self._own: list[object] = []

    def begin(self) -> None:
        """Ignore warnings for the first of the users at the same time."""
        with self._lock:
            if self._users == 0:
                self._before = warnings.filters
                self._context = warnings.catch_warnings()
                self._context.__enter__()
                warnings.simplefilter("ignore")
                self._own = warnings.filters  # type: ignore[assignment]
            self._users += 1

    def end(self) -> None:
        """Restore the filters when the last user has finished."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._restore()

    def _restore(self) -> None:
        if warnings.filters is self._own:
            self._context.__exit__(None, None, None)
            return
        # the program has replaced the filters meanwhile, and may restore these later
        self._own[:] = self._before  # type: ignore[call-overload]

    def after_fork(self) -> None:
        """Forget the threads of the parent, which do not exist in a forked process."""
        self._lock = Lock()
        if self._users:
            self._users = 0
            self._restore()


_IGNORED = _IgnoredWarnings()

os.register_at_fork(after_in_child=_IGNORED.after_fork)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore the warnings of libraries during the body; several threads may use it at the same time.

    `warnings.catch_warnings` alone would leave the warnings of the whole program ignored: of two threads that
    overlap, the second one saves the filters of the first one, and restores them after it.
    """
    _IGNORED.begin()
    try:
        yield
    finally:
        _IGNORED.end()
