"""Waiting for processes that load: one that dies or hangs ends the run in one sentence, with what it was loading.

A dead worker takes finished batches with it that had not left its queue yet, so the batch that is due tells little; the
last image that the worker began with is what it died of, if it was an image.
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
"""How often it is checked, while a batch is due, whether the workers are alive; torch's own interval."""

_LIKELY = {
    signal.SIGKILL: lambda: "likely because memory ran out",
    signal.SIGBUS: lambda: f"likely because {describe_limit(errno.ENOSPC)}",
    signal.SIGSEGV: lambda: "likely by a crash in an image decoder",
}

_LIMIT_MET = 200
"""Added to the limit's number, this is the code by which a worker ends that could not hand over a batch."""


class WorkerBatches(Protocol):
    """torch's iterator over the batches of workers."""

    _workers: Sequence[BaseProcess]

    def __next__(self) -> Any:
        """Return the next batch."""


def end_if_not_handed_over(worker: int) -> None:
    """In a loading process: end if a batch cannot be handed over. Without this it would be dropped, and waited for in vain."""

    def end(error: Exception, batch: Any) -> None:
        limit = limit_of(error)
        if limit is None:
            traceback.print_exception(error)
        os._exit(1 if limit is None else _LIMIT_MET + limit)

    # the hook that multiprocessing has for it, which its types do not list
    setattr(multiprocessing.queues.Queue, "_on_queue_feeder_error", staticmethod(end))  # noqa: B010


def watched(
    start: Callable[[], WorkerBatches], timeout_seconds: float, last_image: Callable[[int], str]
) -> Iterator[Any]:
    """Yield the batches of a loader with workers.

    Args:
        start: begins torch's iterator, whose own timeout is `POLL_SECONDS`.
        timeout_seconds: longest wait for a batch; 0 for no limit.
        last_image: names the image that a worker began with last, by the worker's number.

    Raises:
        ResourceError: if a worker dies, or a batch does not come in time.
    """
    with _deaths_left_to_the_next_batch():
        batches = start()
    while True:
        try:
            batch = _next_batch(batches, timeout_seconds, last_image)
        except StopIteration:
            return
        except Exception:  # the run ends: it need not wait for what the workers have in hand
            _end_all(batches._workers)
            raise
        yield batch


def _next_batch(batches: WorkerBatches, timeout_seconds: float, last_image: Callable[[int], str]) -> Any:
    began = time.monotonic()
    while True:
        try:
            return next(batches)
        except (
            RuntimeError,
            OSError,
            EOFError,
        ) as error:  # the last two: what a dead worker was handing over is gone
            for number, worker in enumerate(batches._workers):
                code = worker.exitcode or 0
                if code > _LIMIT_MET:
                    raise ResourceError(
                        f"loader worker {number} could not hand over a batch: {describe_limit(code - _LIMIT_MET)}"
                    ) from error
                if code:
                    raise ResourceError(
                        f"loader worker {number} (pid {worker.pid}) {_ending(code)}; its last image: {last_image(number)}; "
                        "reduce num_workers, prefetch_factor or total_batch_size, and look at this image"
                    ) from error
            if not str(error).startswith("DataLoader timed out"):
                raise
            if timeout_seconds and time.monotonic() - began >= timeout_seconds:
                images = ", ".join(last_image(number) for number in range(len(batches._workers)))
                raise ResourceError(
                    f"no batch came for {timeout_seconds:g} s (data_timeout): a loader worker hangs or is very slow; last images of the "
                    f"workers: {images}; check that the storage answers, or raise data_timeout"
                ) from error


def _end_all(workers: Sequence[BaseProcess]) -> None:
    """Kill workers: they may wait for each other, and torch would give each of them five seconds to end."""
    for worker in workers:
        worker.kill()


def _ending(exit_code: int) -> str:
    """Tell how a process ended, from multiprocessing's code: a negative one is a signal's number."""
    if exit_code > 0:
        return f"ended with code {exit_code}"
    number = signal.Signals(-exit_code)
    return f"was killed by {number.name}" + (f", {_LIKELY[number]()}" if number in _LIKELY else "")


@contextmanager
def _deaths_left_to_the_next_batch() -> Iterator[None]:
    """Keep torch from installing its handler that raises, at whatever line runs, when a worker dies: it is told by the next batch."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
