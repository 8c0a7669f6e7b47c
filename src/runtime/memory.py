"""Memory of this process: what it keeps for its next allocations, and its peak."""

from __future__ import annotations

import ctypes
import gc
import resource
from functools import lru_cache
from pathlib import Path

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_UP_TO = 1 << 30


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Make glibc keep large freed blocks for the next allocation; return whether that succeeded.

    A batch of images is larger than glibc's threshold for returning memory to the system, so the pages of
    each new batch would cause page faults, which take a quarter of the loading time. Other C libraries are
    not changed.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    is_mapped_later = mallopt(_M_MMAP_THRESHOLD, _KEEP_UP_TO)
    is_trimmed_later = mallopt(_M_TRIM_THRESHOLD, _KEEP_UP_TO)
    return bool(is_mapped_later and is_trimmed_later)


def reset_peak_memory() -> bool:
    """Return unused memory to the system and reset this process's peak; return whether that succeeded.

    `resource.getrusage` then reports the peak from now on. Works on Linux, unless a container forbids it.
    """
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def resident_memory() -> int:
    """Return the bytes of physical memory that this process uses; 0 if the system does not report them."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * resource.getpagesize()
