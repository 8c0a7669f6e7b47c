"""Name of the processor, for results that depend on it."""

from __future__ import annotations

import platform

from .memory import system_lines


def processor_name() -> str:
    """Return the name of the processor as the system reports it, or `unknown`."""
    for line in system_lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"
