"""Memory of this process: what it keeps for its next allocations, and its peak."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from functools import lru_cache
from pathlib import Path

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_UP_TO = 1 << 30

_CONTROL_GROUPS = "/sys/fs/cgroup"


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

    `peak_memory` then returns the peak from now on. Works on Linux, unless a container forbids it.
    """
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def peak_memory() -> int:
    """Return the largest number of bytes of physical memory that this process has used.

    `resource.getrusage` is used only without /proc: its peak includes that of the program that has started
    this process, such as a large notebook, and cannot be reset below it.
    """
    for line in system_lines("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_memory() -> int:
    """Return the bytes of physical memory that this process uses; 0 if the system does not report them."""
    lines = system_lines("/proc/self/statm")
    if not lines:
        return 0
    return int(lines[0].split()[1]) * resource.getpagesize()


def available_memory() -> int:
    """Return the bytes of memory that this process can still allocate, within the limit of its container."""
    available = (
        os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    )  # without /proc
    for line in system_lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for folder in _control_groups():
        limit = _number(f"{folder}/memory.max")
        used = _number(f"{folder}/memory.current")
        if limit is not None and used is not None:
            unused = max(0, limit - used) + _reclaimable(folder)
            available = min(available, unused)
    return available


def _control_groups() -> list[str]:
    """Return the folders of the control group of this process and of those that contain it (cgroup v2)."""
    folder = ""
    for line in system_lines("/proc/self/cgroup"):
        if line.startswith("0::/"):
            folder = line.removeprefix("0::").rstrip("/")
    folders = []
    while folder:
        folders.append(f"{_CONTROL_GROUPS}{folder}")
        folder = folder.rpartition("/")[0]
    return [*folders, _CONTROL_GROUPS]


def system_lines(path: str | Path) -> list[str]:
    """Return the lines of a file of the system, such as those in /proc; none if it does not exist."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _reclaimable(folder: str) -> int:
    """Return the bytes that the container's files occupy in memory, which the system gives up on demand."""
    for line in system_lines(f"{folder}/memory.stat"):
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _number(path: str) -> int | None:
    lines = system_lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None
