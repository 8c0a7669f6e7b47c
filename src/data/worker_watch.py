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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from ..core.errors import ResourceError
from ..runtime.limits import describe_limit, limit_of

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
        ResourceError: if a worker dies, or if a batch does not arrive in time.
    """
    with _without_sigchld_handler():
        batches = start()
    while True:
        try:
            batch = _next_batch(batches, timeout_seconds, last_image)
        except StopIteration:
            return
        except Exception:  # the run ends: unfinished batches are not needed
            _kill_all(batches._workers)
            raise
        yield batch


def _next_batch(
    batches: WorkerBatches,
    timeout_seconds: float,
    last_image: Callable[[int], str],
) -> Any:
    began = time.monotonic()
    while True:
        try:
            return next(batches)
        except (RuntimeError, OSError, EOFError) as error:
            # OSError and EOFError: a worker died during the transfer
            _raise_if_dead(batches._workers, last_image, error)
            if not str(error).startswith("DataLoader timed out"):
                raise
            if timeout_seconds and time.monotonic() - began >= timeout_seconds:
                images = ", ".join(
                    map(last_image, range(len(batches._workers)))
                )
                raise ResourceError(
                    f"no batch arrived within {timeout_seconds:g} s (data_timeout): "
                    "a loader worker hangs or is very slow; "
                    f"last images of the workers: {images}; "
                    "check that the storage answers, or raise data_timeout"
                ) from error


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
