"""Recognize system limits (open files, shared memory) in errors, and explain what to change."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path

from .files import DISK_FULL

SHARED_MEMORY = Path("/dev/shm")

_TOO_MANY_FILES = ("Too many open files", "received 0 items of ancdata")
"""Parts of messages without an error number, from torch about its workers and from workers themselves."""

_SHARED = ("</torch_", "shared memory", "(shm)")
"""Parts of torch's messages about files in shared memory, which are followed by the reason."""


_NO_MEMORY = ("No space left", "insufficient", "Cannot allocate memory")
"""Reasons in such messages that mean that shared memory is full."""


def is_system_limit(error: BaseException) -> bool:
    """Return whether an error is about the process or the system and not about the file being read."""
    limits = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) in limits
    )


def explain_limit(error: BaseException) -> str | None:
    """Return a message with the limit that caused an error and what to change; None for any other error.

    Args:
        error: an error of the system, of torch or of a worker of a data loader.
    """
    limit = limit_of(error)
    if limit is not None:
        return describe_limit(limit)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        place = "a disk or shared memory is full"
        # a copy names the source first, and the file that it writes second
        name = error.filename2 or error.filename
        if name:
            place = f"disk full writing {os.fsdecode(name)}"
        return (
            f"{place}: {error.strerror}; free some space, then start the command again (a training run with "
            "-r auto)"
        )
    return None


def limit_of(error: BaseException) -> int | None:
    """Return EMFILE if no more files can be opened, ENOSPC if shared memory is full, else None."""
    if not isinstance(error, OSError | RuntimeError):
        return None
    text = str(error)
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        return errno.EMFILE
    if any(part in text for part in _TOO_MANY_FILES):
        return errno.EMFILE
    concerns_shared_memory = any(part in text for part in _SHARED)
    if concerns_shared_memory and any(part in text for part in _NO_MEMORY):
        return errno.ENOSPC
    return None


def describe_limit(limit: int) -> str:
    """Return a text with the size of the limit that `limit_of` found, and how to raise it."""
    if limit == errno.EMFILE:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = max(4096, 4 * soft)
        if hard == resource.RLIM_INFINITY or hard >= wanted:
            raised = f"raise it with ulimit -n {wanted} in the shell that starts the run"
        else:
            docker = f"docker run --ulimit nofile={wanted}"
            raised = f"ask an administrator to raise the hard limit of {hard} ({docker})"
        return (
            f"too many open files: this process may have {soft} (ulimit -n); {raised}, or reduce num_workers "
            "and prefetch_factor of the data loaders"
        )
    size = ""
    if SHARED_MEMORY.is_dir():
        usage = shutil.disk_usage(SHARED_MEMORY)
        total = usage.total / 1e6
        free = usage.free / 1e6
        size = f" ({SHARED_MEMORY} has {total:.0f} MB, of which {free:.0f} are free now)"
    return (
        f"shared memory is full{size}, and workers pass batches through it; start the container with "
        "--shm-size=8g, or reduce num_workers, prefetch_factor or total_batch_size"
    )
