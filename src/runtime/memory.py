"""Memory that the process keeps for its next allocations."""

from __future__ import annotations

import ctypes
from functools import lru_cache

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
