"""Forked processes: they have the memory of their parent, but none of the threads that computed in it."""

from __future__ import annotations

import os

import torch

from .log import logger


class _State:
    """State of this process: whether it is a fork, and whether torch is prepared for that."""

    is_forked = False
    is_prepared = False


def _note_fork() -> None:
    _State.is_forked = True
    _State.is_prepared = False


os.register_at_fork(after_in_child=_note_fork)


def prepare_torch_after_fork() -> None:
    """In a forked process, make torch compute on one thread of the CPU; call it before the first computation.

    If the parent has computed with several threads, OpenMP would wait forever for threads that this process
    does not have. Only the first call in a process has an effect.
    """
    if not _State.is_forked or _State.is_prepared:
        return
    _State.is_prepared = True
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
        logger.warning(
            "this process was forked from one that imported torch: torch computes on 1 thread instead of %d; "
            "start processes with multiprocessing's spawn method to use more",
            threads,
        )
