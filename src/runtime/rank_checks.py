"""Checks of the connection between ranks: correct sums, and bandwidths of all ranks and of each pair."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import combinations

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.counts import counted
from ..core.errors import RankError
from .checks import Finding, Skipped
from .distributed import gather_objects, rank, world_size
from .machine_checks import nccl_version

MOST_PAIRS = 120
"""With more pairs (more than 16 ranks), only neighbours are measured."""

_ADVICE = "check the GPUs and their connections (nvidia-smi topo -m), and try NCCL_P2P_DISABLE=1"

_BYTES = {"cuda": 64 << 20, "cpu": 8 << 20}
_REPEATS = {"cuda": 10, "cpu": 3}


def check_ranks(device: torch.device) -> Finding:
    """Add values over all ranks, and exchange values within each pair of ranks. All ranks call this together.

    Args:
        device: device of this rank: NCCL connects GPUs, gloo connects CPUs.

    Raises:
        RankError: if a value that arrives is wrong.
    """
    ranks = world_size()
    if ranks == 1:
        count = torch.cuda.device_count()
        start = "torchrun --nproc_per_node=N tools/doctor.py"
        if count > 1:
            start = start.replace("=N", f"={count}")
        raise Skipped(f"one process; {start} checks several")
    repeats = _REPEATS[device.type]
    values = torch.ones(_BYTES[device.type] // 4, device=device)
    _check_sum(values * (rank() + 1), ranks)
    size = values.numel() * values.element_size()
    seconds = _timed(lambda: dist.all_reduce(values), device, repeats)
    # as nccl-tests counts: each value passes 2 (n - 1) / n times through the slowest connection
    bandwidth = 2 * (ranks - 1) / ranks * size / seconds
    pairs = _measure_pairs(values, ranks, device, repeats)
    slowest = min(pairs, key=lambda pair: pairs[pair])
    backend = f"NCCL {nccl_version()}" if device.type == "cuda" else "gloo"
    text = (
        f"{ranks} ranks with {backend}: all-reduce of {size >> 20} MiB at {bandwidth / 1e9:.1f} GB/s "
        f"(bus bandwidth); {counted(len(pairs), 'pair')}, slowest {slowest} at {pairs[slowest]:.1f} GB/s"
    )
    numbers = {
        "ranks": ranks,
        "backend": backend,
        "all_reduce_gb_per_second": bandwidth / 1e9,
        "pairs_gb_per_second": pairs,
    }
    return Finding(text, numbers)


def _check_sum(values: Tensor, ranks: int) -> None:
    dist.all_reduce(values)
    expected = ranks * (ranks + 1) // 2
    if not bool((values == expected).all()):
        raise RankError(
            f"the sum over {ranks} ranks is wrong: found {values.min().item():g} to "
            f"{values.max().item():g}, expected {expected}; {_ADVICE}"
        )


def _measure_pairs(
    values: Tensor, ranks: int, device: torch.device, repeats: int
) -> dict[str, float]:
    """Return GB/s for each pair of ranks, such as "0-1": both directions, one after the other."""
    pairs = list(combinations(range(ranks), 2))
    if len(pairs) > MOST_PAIRS:
        pairs = [(number, number + 1) for number in range(ranks - 1)]
    size = values.numel() * values.element_size()
    received = torch.zeros_like(values)
    speeds: dict[str, float] = {}
    changed: list[str] = []
    for low, high in pairs:
        if rank() == high:
            _timed(partial(_answer, received, low), device, repeats)
        if rank() != low:
            continue
        call = partial(_call, values, received, high)
        seconds = _timed(call, device, repeats)
        speeds[f"{low}-{high}"] = 2 * size / seconds / 1e9
        if not torch.equal(received, values):
            changed.append(f"{low}-{high}")
    everyone: dict[str, float] = {}
    for found, wrong in gather_objects((speeds, changed)):
        everyone.update(found)
        changed = changed + [pair for pair in wrong if pair not in changed]
    if changed:
        raise RankError(
            f"values that ranks {', '.join(changed)} exchanged have changed on the way; {_ADVICE}"
        )
    return everyone


def _call(values: Tensor, received: Tensor, other: int) -> None:
    """Send values to another rank and receive them back."""
    dist.send(values, other)
    dist.recv(received, other)


def _answer(received: Tensor, other: int) -> None:
    dist.recv(received, other)
    dist.send(received, other)


def _timed(
    work: Callable[[], object], device: torch.device, repeats: int
) -> float:
    """Return the mean seconds of a piece of work; the first run, which connects the ranks, is not counted."""
    work()
    _finish(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    _finish(device)
    return (time.perf_counter() - started) / repeats


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
