"""Limits of the system that a process runs into: open files, shared memory. Messages name the size of each and what to set."""

from __future__ import annotations

import errno
import resource
import shutil
from pathlib import Path

from .files import DISK_FULL

SHARED_MEMORY = Path("/dev/shm")

_TOO_MANY_FILES = ("Too many open files", "received 0 items of ancdata")
"""What is said where the number of an error is lost: by torch about its workers, and by what a worker hands over."""

_SHARED = ("</torch_", "shared memory", "(shm)")
"""What torch says when a file of shared memory is about; why stands behind it."""


def is_system_limit(error: BaseException) -> bool:
    """Return whether an error is about the process or the system and not about the file in hand."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in (
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    )


def explain_limit(error: BaseException) -> str | None:
    """Name the limit that an error of the system, of torch or of a loader's worker is about, and what to set; None for any other error."""
    limit = limit_of(error)
    if limit is not None:
        return describe_limit(limit)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        place = (
            f"disk full writing {error.filename}" if error.filename else "a disk is full, or shared memory is"
        )
        return f"{place}: {error.strerror}; make room, then start the command again (a training run with -r auto)"
    return None


def limit_of(error: BaseException) -> int | None:
    """Return EMFILE if files cannot be opened any more, ENOSPC if shared memory is full, None for any other error."""
    if not isinstance(error, OSError | RuntimeError):
        return None
    text = str(error)
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or any(
        part in text for part in _TOO_MANY_FILES
    ):
        return errno.EMFILE
    if any(part in text for part in _SHARED) and (
        "No space left" in text or "insufficient" in text or "Cannot allocate memory" in text
    ):
        return errno.ENOSPC
    return None


def describe_limit(limit: int) -> str:
    """Return a text: how much there is of what `limit_of` found missing, and how to get more."""
    if limit == errno.EMFILE:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = max(4096, 4 * soft)
        if hard == resource.RLIM_INFINITY or hard >= wanted:
            raised = f"raise it with ulimit -n {wanted} in the shell that starts the run"
        else:
            raised = (
                f"let an administrator raise the hard limit, {hard} (docker run --ulimit nofile={wanted})"
            )
        return f"too many open files: this process may have {soft} (ulimit -n); {raised}, or reduce num_workers and prefetch_factor of the data loaders"
    size = ""
    if SHARED_MEMORY.is_dir():
        usage = shutil.disk_usage(SHARED_MEMORY)
        size = f" ({SHARED_MEMORY} has {usage.total / 1e6:.0f} MB, {usage.free / 1e6:.0f} of them free now)"
    return (
        f"shared memory is full{size}, through which workers hand over batches; start the container with --shm-size=8g, or reduce num_workers, "
        f"prefetch_factor or total_batch_size"
    )
