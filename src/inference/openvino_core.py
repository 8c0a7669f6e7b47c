"""The object through which all code of a process uses OpenVINO."""

from __future__ import annotations

import functools
import os
from typing import Any

from ..runtime.optional import import_optional


def openvino_core() -> Any:
    """Return the `openvino.Core` of this process, which is never deleted.

    OpenVINO's CPU plugin gives the main thread a stack for signal handlers and frees it when its core is
    deleted. Of two cores, the one that is deleted last can restore the stack that the other one has freed:
    the next signal, such as Ctrl-C, would then end the process with SIGSEGV. A core that stays prevents it.

    Raises:
        ConfigError: if OpenVINO is not installed.
    """
    # threads of the parent do not exist in a forked process
    return _core_of(os.getpid())


@functools.cache
def _core_of(process: int) -> Any:
    core = import_optional("openvino").Core()
    _ = core.available_devices  # loads the plugins now, before those of others
    return core
