"""Ranks: who am I, how do we meet, how do we exchange values. Every function works in a single process too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.errors import ConfigError, RankError

DEFAULT_TIMEOUT = timedelta(minutes=10)


def is_distributed() -> bool:
    """True once several processes have joined into one group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0..world_size - 1."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """True on the one rank that writes files and speaks."""
    return rank() == 0


def pick_device(name: str | None) -> torch.device:
    """Return the device of this process: `name`, else CUDA by local rank if there is one, else the CPU.

    Raises:
        ConfigError: if the named device does not exist here.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device '{name}' is not a device; use cpu, cuda or cuda:N") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"device '{name}' was asked for, but torch {torch.__version__} sees no CUDA device here; use -d cpu")
    index = device.index if device.index is not None else local_rank
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device cuda:{index} was asked for, but there are {torch.cuda.device_count()}; start fewer processes a machine")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def join_group(device: torch.device, timeout: timedelta = DEFAULT_TIMEOUT) -> None:
    """Join the other ranks if a launcher such as torchrun started several, else do nothing.

    Each restart by torchrun meets under its own prefix: its store outlives the workers, and addresses of dead
    peers would be found there otherwise.

    Raises:
        RankError: if the ranks do not find each other. A process never goes on alone.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count <= 1:
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RankError(f"WORLD_SIZE is {count} but {', '.join(missing)} is not set; start several ranks with torchrun")
    own_rank, attempt = int(os.environ["RANK"]), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    hosted_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, count, is_master=own_rank == 0 and not hosted_by_agent, timeout=timeout)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", rank=own_rank, world_size=count,
                                store=dist.PrefixStore(f"attempt{attempt}", store), timeout=timeout)
        barrier()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RankError(f"rank {own_rank} of {count} cannot join the others at {address}:{port}: {reason}") from error


def leave_group() -> None:
    """Leave the group of ranks, if there is one."""
    if is_distributed():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here; over gloo, so that no device is involved."""
    if is_distributed():
        dist.all_reduce(torch.zeros(1))


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum over ranks; the argument is not changed."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise mean over ranks; the argument is not changed."""
    return sum_over_ranks(values) / world_size()


def bits_over_ranks(values: Tensor) -> Tensor:
    """Return the bit-wise or over ranks of whole numbers on the CPU; the argument is not changed."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values, op=dist.ReduceOp.BOR)
    return values


def everywhere(conditions: Tensor) -> list[bool]:
    """Return which conditions (`[n]` bool, on any device) hold on every rank."""
    if world_size() > 1:
        conditions = conditions.to(torch.int32)
        dist.all_reduce(conditions, op=dist.ReduceOp.MIN)
    return [bool(c) for c in conditions.tolist()]


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all ranks, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_tensors(tensors: list[Tensor]) -> None:
    """Overwrite the tensors of every rank, in place, by those of rank 0."""
    if world_size() == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor, src=0)


@contextmanager
def main_first() -> Iterator[None]:
    """Run the body on rank 0 first, then on the others: for files that one rank fetches and all read."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()

