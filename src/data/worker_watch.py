"""Supervision of loader workers: if one dies or hangs, the run ends with a message about its last image.

Batches that a dead worker had finished but not sent are lost, so the missing batch says little about the
cause. The image that the worker started last is the likely cause, if an image was the cause.
"""

from __future__ import annotations

import errno
import multiprocessing.queues
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from ..core.errors import ResourceError, first_line
from ..runtime.limits import describe_limit, limit_of
from ..runtime.process import end_from_thread

POLL_SECONDS = 5.0
"""Interval at which the workers are checked while a batch is awaited; the same as in torch."""

_LIKELY = {
    signal.SIGKILL: lambda: "likely because memory ran out",
    signal.SIGBUS: lambda: f"likely because {describe_limit(errno.ENOSPC)}",
    signal.SIGSEGV: lambda: "likely by a crash in an image decoder",
}

_LIMIT_REACHED = 200
"""Base of the exit code of a worker that could not hand over a batch; the number of the limit is added."""


class WorkerBatches(Protocol):
    """The iterator of torch over the batches of workers."""

    _workers: Sequence[BaseProcess]

    def __next__(self) -> Any:
        """Return the next batch."""


def end_if_not_handed_over(worker: int) -> None:
    """Make a worker process exit if a batch cannot be handed over.

    By default the batch would be dropped, and the main process would wait for it until the timeout.
    """

    def end(error: Exception, batch: Any) -> None:
        limit = limit_of(error)
        if limit is None:
            traceback.print_exception(error)
        os._exit(1 if limit is None else _LIMIT_REACHED + limit)

    # multiprocessing's hook for such errors; its type stubs do not list it
    queues: Any = multiprocessing.queues.Queue
    queues._on_queue_feeder_error = staticmethod(end)


def watched(
    start: Callable[[], WorkerBatches],
    timeout_seconds: float,
    last_image: Callable[[int], str],
) -> Iterator[Any]:
    """Yield the batches of a loader with workers.

    Args:
        start: function that starts torch's iterator, whose own timeout is `POLL_SECONDS`.
        timeout_seconds: maximum time to wait for a batch; 0 means no limit.
        last_image: function from the number of a worker to the name of the image that it started last.

    Raises:
        ResourceError: if a worker dies, or if a batch does not arrive in time. If the thread that waits
            cannot raise it, another thread ends the command with its exit code.
    """
    with _without_sigchld_handler():
        batches = start()
    watch = _Watch(batches._workers, timeout_seconds, last_image)
    pinning = _PinningThread(batches)
    try:
        while True:
            try:
                with watch:
                    batch = _next_batch(
                        batches, pinning, timeout_seconds, last_image
                    )
            except StopIteration:
                return
            except Exception as error:
                if watch.fault is None:
                    raise
                raise watch.fault from error
            if watch.fault is not None:
                raise watch.fault
            yield batch
    finally:
        # unfinished batches are not needed, and a stopped worker would never end by itself
        _kill_all(batches._workers)
        watch.end()
        pinning.end()


class _PinningThread:
    """The error of torch's thread that copies batches to pinned memory.

    torch prints the error of this thread and waits for batches nevertheless.
    """

    def __init__(self, batches: WorkerBatches) -> None:
        """Keep the errors of the thread instead of printing them; there is no such thread without CUDA."""
        self.error: BaseException | None = None
        self._thread = getattr(batches, "_pin_memory_thread", None)
        self._before = threading.excepthook
        self._hook = self._note
        if self._thread is not None:
            threading.excepthook = self._hook

    def end(self) -> None:
        """Print errors of threads again as before."""
        if threading.excepthook is self._hook:
            threading.excepthook = self._before

    def raise_error(self) -> None:
        """Raise `ResourceError` if the thread has ended with an error."""
        if self.error is None:
            return
        limit = limit_of(self.error)
        reason = first_line(self.error)
        if limit is not None:
            reason = describe_limit(limit)
        raise ResourceError(
            f"batches cannot be copied to pinned memory: {reason}"
        ) from self.error

    def _note(self, arguments: threading.ExceptHookArgs) -> None:
        if arguments.thread is self._thread:
            self.error = arguments.exc_value
        else:
            self._before(arguments)


class _Watch:
    """A thread that ends the wait for a batch when the waiting thread cannot do it itself.

    `_next_batch` looks at the time between its attempts to get a batch. An attempt itself can block: for
    example if a worker is stopped after it has announced a batch and before it has handed over its memory.
    Then this thread kills the workers, which ends the transfer with an error. If the waiting thread does not
    come back even then, the thread ends the process.
    """

    def __init__(
        self,
        workers: Sequence[BaseProcess],
        timeout_seconds: float,
        last_image: Callable[[int], str],
    ) -> None:
        """Start the thread, unless there is no limit."""
        self.fault: ResourceError | None = None
        self._workers = workers
        self._timeout = timeout_seconds
        self._last_image = last_image
        self._began: float | None = None
        self._is_over = threading.Event()
        if timeout_seconds:
            name = "data_timeout"
            threading.Thread(target=self._watch, name=name, daemon=True).start()

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._began = None

    def end(self) -> None:
        """End the thread."""
        self._is_over.set()

    def _watch(self) -> None:
        # by then, `_next_batch` has had the time to raise the error itself
        limit = self._timeout + 2 * POLL_SECONDS
        while not self._waits_longer_than(limit):
            if self._is_over.wait(POLL_SECONDS):
                return
        workers = range(len(self._workers))
        self.fault = _timed_out(self._timeout, workers, self._last_image)
        _kill_all(self._workers)
        while not self._is_over.wait(POLL_SECONDS):
            if self._waits_longer_than(limit + 2 * POLL_SECONDS):
                end_from_thread(self.fault)
                return

    def _waits_longer_than(self, seconds: float) -> bool:
        began = self._began
        return began is not None and time.monotonic() - began > seconds


def _next_batch(
    batches: WorkerBatches,
    pinning: _PinningThread,
    timeout_seconds: float,
    last_image: Callable[[int], str],
) -> Any:
    began = time.monotonic()
    while True:
        try:
            return next(batches)
        except (RuntimeError, OSError, EOFError) as error:
            # OSError and EOFError: a worker died during the transfer
            pinning.raise_error()
            _raise_if_dead(batches._workers, last_image, error)
            if not str(error).startswith("DataLoader timed out"):
                raise
            if timeout_seconds and time.monotonic() - began >= timeout_seconds:
                workers = range(len(batches._workers))
                raise _timed_out(
                    timeout_seconds, workers, last_image
                ) from error


def _timed_out(
    seconds: float, workers: Iterable[int], last_image: Callable[[int], str]
) -> ResourceError:
    """Return the error for a batch that did not arrive."""
    images = ", ".join(map(last_image, workers))
    return ResourceError(
        f"no batch arrived within {seconds:g} s (data_timeout): a loader worker hangs or is very slow; "
        f"last images of the workers: {images}; check that the storage answers, or raise data_timeout"
    )


def _raise_if_dead(
    workers: Sequence[BaseProcess],
    last_image: Callable[[int], str],
    cause: Exception,
) -> None:
    """Raise `ResourceError` if a worker has died."""
    for number, worker in enumerate(workers):
        code = worker.exitcode or 0
        if code > _LIMIT_REACHED:
            limit = describe_limit(code - _LIMIT_REACHED)
            raise ResourceError(
                f"loader worker {number} could not hand over a batch: {limit}"
            ) from cause
        if code:
            raise ResourceError(
                f"loader worker {number} (pid {worker.pid}) {_ending(code)}; "
                f"its last image: {last_image(number)}; "
                "reduce num_workers, prefetch_factor or total_batch_size, and look at this image"
            ) from cause


def _kill_all(workers: Sequence[BaseProcess]) -> None:
    """Kill the workers.

    They may wait for each other, and torch would give each of them five seconds to end.
    """
    for worker in workers:
        worker.kill()


def _ending(exit_code: int) -> str:
    """Describe how a process ended, from multiprocessing's exit code; a negative code is a signal number."""
    if exit_code > 0:
        return f"ended with code {exit_code}"
    number = signal.Signals(-exit_code)
    text = f"was killed by {number.name}"
    if number in _LIKELY:
        text += f", {_LIKELY[number]()}"
    return text


@contextmanager
def _without_sigchld_handler() -> Iterator[None]:
    """Suppress torch's SIGCHLD handler, which raises at an arbitrary line when a worker dies.

    A dead worker is reported with the next batch.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(
            signal.SIGCHLD, before if before is not None else signal.SIG_DFL
        )
