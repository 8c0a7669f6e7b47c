"""The thread that decodes and predicts, one image after the other, and the places of the requests."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from .refusals import Refused

T = TypeVar("T")


class Places:
    """Number of requests that are in the server; nobody waits for a place.

    Example:
        >>> places = Places(1)
        >>> places.enter(), places.enter()
        (True, False)
    """

    def __init__(self, count: int) -> None:
        """Store the number of places."""
        self.count = count
        self.taken = 0
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Return whether there is a place; if so, it is taken until `leave`."""
        with self._lock:
            if self.taken >= self.count:
                return False
            self.taken += 1
            return True

    def leave(self) -> None:
        """Free a place; any thread can call this."""
        with self._lock:
            self.taken -= 1


class Worker:
    """One thread that runs jobs in order.

    The thread is a daemon, because a model that never returns must not keep the process alive.
    """

    def __init__(self) -> None:
        """Start the thread."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = (
            queue.SimpleQueue()
        )
        self._began: float | None = None
        self._thread = threading.Thread(
            target=self._work, name="predictions", daemon=True
        )
        self._thread.start()

    @property
    def busy_seconds(self) -> float:
        """Return how long the current job has been running; 0 if there is none."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def start(self, job: Callable[[], T]) -> Future[T]:
        """Queue a job and return its future, which can be cancelled until the job begins."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = job()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._jobs.put(run)
        return future

    def close(self, seconds: float) -> bool:
        """End the thread after its queued jobs; return whether it ended in time."""
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self._began = time.monotonic()
            job()
            self._began = None
            del job  # it holds an image


async def result_within(future: Future[T], seconds: float) -> T:
    """Return the result of a job; a job that has not begun in time is cancelled.

    Raises:
        Refused: 503 if it takes too long.
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
    except asyncio.TimeoutError:
        raise Refused(
            503,
            f"the image was not predicted within {seconds:g} s; try again later",
        ) from None
