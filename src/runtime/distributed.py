"""Ranks: who am I, how do we meet, how do we exchange values. Every function works in a single process too."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.errors import ConfigError, RankError, first_line
from .device_faults import describe_recordings, is_device_fault, record_collectives
from .log import logger

DEFAULT_TIMEOUT = timedelta(minutes=10)

_store: dist.Store | None = None
"""Where ranks leave notes for each other; outlives a rank that has ended."""

_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
    "NCCL",
    "ProcessGroup",
    "gloo",
)
"""Parts of what torch says when another rank does not answer."""


_GRACE, _ANSWER = 2.0, 2.0
"""Seconds in which ranks that wait for the same one tell so, and in which a store answers that is there."""


class LostRank(RankError):
    """Another rank ended or does not answer."""

    def __init__(self, message: str, first_code: int | None = None) -> None:
        super().__init__(message)
        self.first_code = first_code
        """Exit code of the rank that ended first, if it told."""


def is_distributed() -> bool:
    """True once several processes have joined into one group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0..world_size - 1."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """True on the one rank that writes files and speaks."""
    return rank() == 0


def machine() -> str:
    """Return a key of this machine: the random id that the system made when it started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


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
        raise ConfigError(
            f"device '{name}' was asked for, but torch {torch.__version__} sees no CUDA device here; use -d cpu"
        )
    index = device.index if device.index is not None else local_rank
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"device cuda:{index} was asked for, but there are {torch.cuda.device_count()}; start fewer processes a machine"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def join_group(
    device: torch.device, timeout: timedelta = DEFAULT_TIMEOUT, records: Path | None = None
) -> None:
    """Join the other ranks if a launcher such as torchrun started several, else do nothing.

    Each restart by torchrun meets under its own prefix: its store outlives the workers, and addresses of dead
    peers would be found there otherwise. Several torchruns count their restarts apart, so they have to make a new store for each,
    which they do with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.

    Args:
        device: of this rank.
        timeout: how long ranks wait for each other.
        records: folder for what NCCL remembers of its collectives when one fails; None keeps nothing.

    Raises:
        RankError: if the ranks do not find each other. A process never goes on alone.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count <= 1:
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RankError(
            f"WORLD_SIZE is {count} but {', '.join(missing)} is not set; start several ranks with torchrun"
        )
    global _store
    own_rank, attempt = int(os.environ["RANK"]), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    hosted_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if (
        hosted_by_agent
        and int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1
        and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    ):
        logger.warning(
            "several torchruns share one store, in which ranks do not find each other after a restart; start them with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 (docs/cluster.md)"
        )
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if records is not None and device.type == "cuda":
        record_collectives(records, own_rank)
    try:
        store: dist.Store = dist.TCPStore(
            address, port, count, is_master=own_rank == 0 and not hosted_by_agent, timeout=timeout
        )
        if hosted_by_agent:  # else the store is as new as this attempt
            store = dist.PrefixStore(f"attempt{attempt}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            rank=own_rank,
            world_size=count,
            store=store,
            timeout=timeout,
        )
        _store = dist.PrefixStore("notes", store)
        barrier()
    except (RuntimeError, ValueError, OSError) as error:
        reason = first_line(error)
        raise RankError(
            f"rank {own_rank} of {count} cannot join the others at {address}:{port}: {reason}"
        ) from error


def leave_group() -> None:
    """Leave the group of ranks, if there is one."""
    global _store
    _store = None
    if is_distributed():
        dist.destroy_process_group()


def tell_step(step: int) -> None:
    """Leave a note of the step that this rank begins."""
    _note(f"step{rank()}", str(step))


def tell_stacks(path: Path) -> None:
    """Leave a note of where this rank writes its stack if a step takes too long."""
    _note(f"stacks{rank()}", str(path.absolute()))


def _note(key: str, value: str) -> None:
    try:
        if _store is not None:
            _store.set(key, value)
    except RuntimeError:
        pass  # the store is gone with its host, and so are those who could read


def tell_error(code: int, message: str) -> None:
    """Leave a note of why this rank ends, before it does; the first one counts."""
    if _read_note("error") is None:
        _note("error", f"{code} {message} (rank {rank()})")


def _read_note(key: str) -> str | None:
    try:
        return _store.get(key).decode() if _store is not None and _store.check([key]) else None
    except RuntimeError:
        return None


def explain_lost_rank(error: BaseException) -> LostRank | None:
    """Return why another rank does not answer, if that is what an error is about."""
    if not (
        is_distributed() and isinstance(error, RuntimeError) and any(part in str(error) for part in _LOST)
    ) or is_device_fault(error):
        return None
    found: list[LostRank] = []
    asking = threading.Thread(target=lambda: found.append(_ask_for_lost_rank()), daemon=True)
    asking.start()
    asking.join(_GRACE + _ANSWER)  # a store does not answer if the rank that hosts it is the silent one
    if found:
        return found[0]
    return LostRank(
        "another rank ended or does not answer, likely rank 0, which keeps the notes of all; its own output says why"
        + describe_recordings()
    )


def _ask_for_lost_rank() -> LostRank:
    """Look through the notes for the rank that ended or is silent."""
    _note(f"waiting{rank()}", "")
    if told := _read_note("error"):
        code, _, message = told.partition(" ")
        return LostRank(f"another rank ended first: error[{code}]: {message}", int(code))
    time.sleep(_GRACE)  # the others find out at about the same time
    silent = [
        number
        for number in range(world_size())
        if number != rank() and _read_note(f"waiting{number}") is None
    ]
    if not silent or _store is None:
        return LostRank(
            "another rank ended or does not answer; its own output says why" + describe_recordings()
        )
    return LostRank(
        f"{', '.join(map(_absence, silent))}; it ended or does not answer; {_stacks_written()}{describe_recordings()}"
    )


def _absence(number: int) -> str:
    """Return a text about a rank that is missed: "rank 1 did not reach step 123 (last seen 122)"."""
    seen, here = _read_note(f"step{number}"), _read_note(f"step{rank()}")
    if seen is None or here is None:
        return f"rank {number} did not reach step {here or 0} ({'never seen at one' if seen is None else f'last seen {seen}'})"
    return f"rank {number} did not {'reach' if int(seen) < int(here) else 'finish'} step {here} (last seen {seen})"


def _stacks_written() -> str:
    """Return a text about the ranks that have written where they stand, with the files."""
    files = {number: path for number in range(world_size()) if (path := _read_note(f"stacks{number}"))}
    written = {
        number: path for number, path in files.items() if Path(path).is_file() and Path(path).stat().st_size
    }
    if not written:
        return "no rank took so long that it wrote its stack"
    without = [number for number in range(world_size()) if number not in written]
    return f"stacks: {', '.join(written.values())}" + (
        f" (rank {', '.join(map(str, without))} wrote none)" if without else ""
    )


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


def check_ranks_agree(known: dict[str, Any]) -> None:
    """Compare what all ranks must have alike.

    Raises:
        RankError: with the first thing that differs, and on which ranks.
    """
    everyone = gather_objects(known)
    for name, value in everyone[0].items():
        if others := [number for number, theirs in enumerate(everyone) if theirs[name] != value]:
            shown = "" if name == "configuration" else f": {everyone[others[0]][name]} and {value}"
            raise RankError(
                f"rank(s) {', '.join(map(str, others))} and rank 0 have another {name}{shown}; start all ranks with the same command and files"
            )


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
