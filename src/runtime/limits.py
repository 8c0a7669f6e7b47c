"""Limits of the system that a process runs into: open files, shared memory. Each is told with its size and what to set."""

from __future__ import annotations

import errno
import resource
import shutil
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

_TOO_MANY_FILES = ("Too many open files", "received 0 items of ancdata")
"""What is said where the number of an error is lost: by torch about its workers, and by what a worker hands over."""

_SHARED_MEMORY_FULL = ("unable to write to file </torch_", "unable to allocate shared memory", "unable to mmap", "could not unlink the shared memory file",
                       "insufficient shared memory")
"""Beginnings of what torch says about shared memory."""


def is_system_limit(error: BaseException) -> bool:
    """Tell whether an error is about the process or the system and not about the file in hand."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def explain_limit(error: BaseException) -> str | None:
    """Name the limit that an error of the system, of torch or of a loader's worker is about, and what to set; None for any other error."""
    text = str(error)
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or any(part in text for part in _TOO_MANY_FILES):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (f"too many open files: this process may have {soft} (ulimit -n); raise it, for instance with ulimit -n {_more_files(soft, hard)} in the shell "
                f"that starts the run, or reduce num_workers and prefetch_factor of the data loaders")
    if any(part in text for part in _SHARED_MEMORY_FULL):
        return f"shared memory is full: {describe_shared_memory()}"
    return None


def describe_shared_memory() -> str:
    """Tell how large the memory is through which workers hand over batches, and how to get more."""
    size = ""
    if SHARED_MEMORY.is_dir():
        usage = shutil.disk_usage(SHARED_MEMORY)
        size = f" has {usage.total / 1e6:.0f} MB, {usage.free / 1e6:.0f} of them free"
    return f"{SHARED_MEMORY}{size}; start the container with --shm-size=8g, or reduce num_workers, prefetch_factor or total_batch_size"


def _more_files(soft: int, hard: int) -> int:
    wanted = max(4096, 4 * soft)
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
