"""A call of this package from another program: its messages, random states, signals, ranks and errors.

A command owns its process and ends it with a code. A function that is called from Python must leave the
process as it was, and raise errors of this package.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from ..core.errors import ConfigError, ResourceError, RunError
from .distributed import (
    explain_lost_rank,
    is_distributed,
    join_group,
    pick_device,
    tell_error,
)
from .log import shown_in_terminal
from .process import end_with_peers, explain
from .stop import StopRequest


@contextmanager
def as_library(
    is_of_caller: Callable[[Exception], bool] = lambda error: False,
) -> Iterator[None]:
    """Show messages, keep the random state of the caller, and raise errors of this package.

    Args:
        is_of_caller: returns whether an error was raised by code of the caller; it is raised unchanged.
    """
    is_first = int(os.environ.get("RANK", 0)) == 0
    with shown_in_terminal(speaks=is_first), _random_state_kept():
        try:
            yield
        except Exception as error:
            if is_of_caller(error):
                raise
            known = explain_lost_rank(error) or error
            code, message = explain(known)
            tell_error(code, message)
            kind = {
                ConfigError.exit_code: ConfigError,
                ResourceError.exit_code: ResourceError,
            }.get(code)
            if isinstance(error, RunError) or kind is None:
                raise
            raise kind(message) from error


def join_started_ranks(device: str | None) -> torch.device:
    """Return the device of this rank, after joining the other ranks if torchrun has started several."""
    picked = pick_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not is_distributed():
        join_group(picked)
        end_with_peers(None)
    return picked


@contextmanager
def listening_in_main_thread(stop: StopRequest) -> Iterator[None]:
    """Let signals end the run in order; only the main thread can handle signals."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    with stop.listening() if in_main_thread else nullcontext():
        yield


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the random states of the caller; a run seeds all generators at every step."""
    python = random.getstate()
    numpy = np.random.get_state()
    devices = (
        range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    )
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
