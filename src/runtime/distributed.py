"""Ranks of a distributed run: joining the group and exchanging values.

Every function also works in a single process.
"""

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
from .device_faults import (
    describe_recordings,
    is_own_fault,
    original_text,
    record_collectives,
)
from .log import logger

DEFAULT_TIMEOUT = timedelta(minutes=10)

_store: dist.Store | None = None
"""Key-value store for short notes between ranks; it outlives a rank that has ended."""

_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
    "NCCL",
    "ProcessGroup",
    "gloo",
)
"""Parts of torch's error messages when another rank does not respond."""


_GRACE = 2.0
"""Seconds within which all ranks that wait for the same rank have left a note."""

_ANSWER = 2.0
"""Seconds within which a store that is alive responds."""


class LostRank(RankError):
    """Another rank ended or does not respond."""

    def __init__(self, message: str, first_code: int | None = None) -> None:
        super().__init__(message)
        self.first_code = first_code
        """Exit code of the rank that ended first, if it left a note."""


def is_distributed() -> bool:
    """Return whether this process has joined a group of several processes."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process, 0..world_size - 1."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of ranks; 1 without a group and within `without_other_ranks`."""
    return dist.get_world_size() if is_distributed() and not _is_alone else 1


_is_alone = False


@contextmanager
def without_other_ranks() -> Iterator[None]:
    """Compute on this rank alone in the body, in which nothing is exchanged with the others."""
    global _is_alone
    _is_alone = True
    try:
        yield
    finally:
        _is_alone = False


def is_main() -> bool:
    """Return True on the single rank that writes files and logs."""
    return rank() == 0


def machine() -> str:
    """Return a key of this machine: the random id that the system generates at boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def pick_device(name: str | None) -> torch.device:
    """Return the device of this process: `name`, else CUDA by local rank if available, else the CPU.

    A process that sees a single GPU uses it, unless torchrun started several, which all see the same one.

    Raises:
        ConfigError: if the named device does not exist here or is not supported.
    """
    global _device
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"device '{name}' is not a device; use cpu, cuda or cuda:N"
        ) from None
    if device.type == "cpu":
        _device = torch.device("cpu")
        return _device
    if device.type != "cuda":
        raise ConfigError(
            f"device '{name}' is not supported; use cpu, cuda or cuda:N"
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device '{name}' was requested, but torch {torch.__version__} finds no CUDA device here; use "
            "-d cpu"
        )
    _device = torch.device("cuda", _cuda_index(name, device.index))
    torch.cuda.set_device(_device)
    return _device


def hide_gpus() -> None:
    """Hide all GPUs from a command that computes on the CPU; call this before CUDA is used.

    Otherwise torch's optimizers open a CUDA context on a machine with GPUs, to look for a graph capture.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


_device: torch.device | None = None
"""Device that `pick_device` returned last."""


def uses_cuda() -> bool:
    """Return whether this process computes on a GPU; before `pick_device`, whether there is one."""
    if _device is None:
        return torch.cuda.is_available()
    return _device.type == "cuda"


def _cuda_index(name: str, index: int | None) -> int:
    """Return the number of the CUDA device of this process."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    count = torch.cuda.device_count()
    if index is not None and processes > 1:
        raise ConfigError(
            f"device {name} was requested by {processes} processes of this machine, but each needs a GPU of "
            "its own; use -d cuda, which gives each process the GPU of its LOCAL_RANK"
        )
    if index is None:
        sees_only_its_own = (
            count == 1 and "TORCHELASTIC_RUN_ID" not in os.environ
        )
        index = 0 if sees_only_its_own else local_rank
    if index >= count:
        raise ConfigError(
            f"device cuda:{index} was requested, but there are {count} CUDA devices; start fewer processes "
            "per machine"
        )
    return index


def join_group(
    device: torch.device,
    timeout: timedelta = DEFAULT_TIMEOUT,
    records: Path | None = None,
) -> None:
    """Join the other ranks if a launcher such as torchrun started several, else do nothing.

    Each restart by torchrun uses its own key prefix, because torchrun's store outlives the workers and still
    contains the addresses of dead peers. Several torchrun processes count their restarts independently, so
    they need a new store for each restart, which TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives them.

    Args:
        device: device of this rank.
        timeout: maximum time that ranks wait for each other.
        records: folder for the files of NCCL's flight recorder; None disables it.

    Raises:
        RankError: if the ranks cannot connect. A process never continues alone.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count <= 1:
        return
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise RankError(
            f"WORLD_SIZE is {count} but {', '.join(missing)} is not set; start several ranks with torchrun"
        )
    global _store
    own_rank = int(os.environ["RANK"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    hosted_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    has_several_agents = int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1
    may_restart = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0
    if hosted_by_agent and has_several_agents and may_restart:
        logger.warning(
            "several torchrun processes share one store, through which ranks cannot connect after a restart; "
            "start them with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 (docs/cluster.md)"
        )
    address = os.environ["MASTER_ADDR"]
    port = int(os.environ["MASTER_PORT"])
    if records is not None and device.type == "cuda":
        record_collectives(records, own_rank)
    try:
        store: dist.Store = dist.TCPStore(
            address,
            port,
            count,
            is_master=own_rank == 0 and not hosted_by_agent,
            timeout=timeout,
        )
        if hosted_by_agent:  # otherwise the store is new in each attempt
            store = dist.PrefixStore(f"attempt{attempt}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            rank=own_rank,
            world_size=count,
            store=store,
            timeout=timeout,
        )
        _store = _store_of_notes(address, port, attempt, timeout)
        barrier()
    except (RuntimeError, ValueError, OSError) as error:
        reason = first_line(error)
        raise RankError(
            f"rank {own_rank} of {count} cannot connect to the other ranks at {address}:{port}: {reason}"
        ) from error


def _store_of_notes(
    address: str, port: int, attempt: str, timeout: timedelta
) -> dist.Store:
    """Return a connection to the store for notes alone, because the group's own may wait for another rank."""
    connection = dist.TCPStore(
        address, port, is_master=False, wait_for_workers=False, timeout=timeout
    )
    return dist.PrefixStore(f"notes{attempt}", connection)


def leave_group() -> None:
    """Leave the group of ranks, if this process has joined one."""
    global _store
    _store = None
    if is_distributed():
        dist.destroy_process_group()


def tell_step(step: int) -> None:
    """Leave a note about the step that this rank begins."""
    _note(f"step{rank()}", str(step))


def tell_stacks(path: Path) -> None:
    """Leave a note about the file to which this rank writes its stack if a step takes too long."""
    _note(f"stacks{rank()}", str(path.absolute()))


def _note(key: str, value: str) -> None:
    try:
        if _store is not None:
            _store.set(key, value)
    except RuntimeError:
        pass  # the rank that hosts the store has ended, and with it all readers


def tell_error(code: int, message: str) -> None:
    """Leave a note about the reason why this rank ends; only the first note of all ranks is kept."""
    if _read_note("error") is None:
        _note("error", f"{code} {message} (rank {rank()})")


def error_of_other_rank() -> tuple[int, str] | None:
    """Return code and message of the error that another rank left as a note, or None."""
    note = _read_note("error")
    if note is None or note.endswith(f"(rank {rank()})"):
        return None
    code, _, message = note.partition(" ")
    return int(code), message


def _read_note(key: str) -> str | None:
    """Return a note, or None if there is none or the store does not respond."""
    try:
        if _store is None or not _store.check([key]):
            return None
        return _store.get(key).decode()
    except RuntimeError:
        return None


def explain_lost_rank(error: BaseException) -> LostRank | None:
    """Return an error that explains why another rank does not respond, or None for any other error."""
    if not is_distributed() or not isinstance(error, RuntimeError):
        return None
    if is_own_fault(error):
        return None
    if not any(part in str(error) for part in _LOST):
        return None
    lost = _lost_rank()
    return LostRank(
        f"{lost}; torch reports: {original_text(error)}", lost.first_code
    )


def _lost_rank() -> LostRank:
    """Find out which rank ended or does not respond, within a few seconds."""
    found: list[LostRank] = []

    def ask() -> None:
        found.append(_ask_for_lost_rank())

    # in a thread: the store itself does not respond if its host is the silent rank
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_GRACE + _ANSWER)
    if found:
        return found[0]
    return LostRank(
        "another rank ended or does not respond, probably rank 0, which hosts the store; see its output for "
        f"the reason{describe_recordings()}"
    )


def _ask_for_lost_rank() -> LostRank:
    """Find the rank that ended or does not respond in the notes."""
    _note(f"waiting{rank()}", "")
    ended = error_of_other_rank()
    if ended is not None:
        return ended_first(*ended)
    time.sleep(_GRACE)  # the other ranks notice at about the same time
    silent = []
    for number in range(world_size()):
        if number != rank() and _read_note(f"waiting{number}") is None:
            silent.append(number)
    if not silent or _store is None:
        return LostRank(
            f"another rank ended or does not respond; see its output for the reason{describe_recordings()}"
        )
    return LostRank(
        f"{', '.join(map(_absence, silent))}; it ended or does not respond; {_stacks_written()}"
        f"{describe_recordings()}"
    )


def ended_first(code: int, message: str) -> LostRank:
    """Return the error of a rank that ends because another one has ended with an error."""
    return LostRank(f"another rank ended first: error[{code}]: {message}", code)


def _absence(number: int) -> str:
    """Return a text about a missing rank: "rank 1 did not reach step 123 (last seen at step 122)"."""
    seen = _read_note(f"step{number}")
    here = _read_note(f"step{rank()}")
    if seen is None:
        return f"rank {number} did not reach step {here or 0} (never seen at a step)"
    verb = "finish" if here is not None and int(seen) >= int(here) else "reach"
    return f"rank {number} did not {verb} step {here or 0} (last seen at step {seen})"


def _stacks_written() -> str:
    """Return a text that lists the stack files of ranks whose step took too long."""
    written = []
    without = []
    for number in range(world_size()):
        path = _read_note(f"stacks{number}")
        if path and Path(path).is_file() and Path(path).stat().st_size:
            written.append(path)
        else:
            without.append(str(number))
    if not written:
        return "no rank has written its stack, which a rank does when a step takes too long"
    others = f" (none from rank {', '.join(without)})" if without else ""
    return f"stacks: {', '.join(written)}{others}"


def barrier() -> None:
    """Wait until every rank has reached this point; uses gloo, so no device is involved."""
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
    """Return the bitwise or over ranks of an integer tensor on the CPU; the argument is not changed."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values, op=dist.ReduceOp.BOR)
    return values


def everywhere(conditions: Tensor) -> list[bool]:
    """Return for each condition (`[n]` bool, on any device) whether it is true on every rank."""
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


def gather_on_main(value: Any) -> list[Any] | None:
    """Return the values of all ranks, in rank order, on rank 0, and None on the others."""
    if world_size() == 1:
        return [value]
    gathered = [None] * world_size() if is_main() else None
    dist.gather_object(value, gathered)
    return gathered


def check_ranks_agree(known: dict[str, Any]) -> None:
    """Compare values that must be the same on all ranks.

    Raises:
        RankError: with the first value that differs, and the ranks.
    """
    everyone = gather_objects(known)
    for name, value in everyone[0].items():
        others = []
        for number, theirs in enumerate(everyone):
            if theirs[name] != value:
                others.append(number)
        if others:
            shown = f": {everyone[others[0]][name]} and {value}"
            if name == "configuration":
                shown = ""
            noun = "rank" if len(others) == 1 else "ranks"
            raise RankError(
                f"{noun} {', '.join(map(str, others))} and rank 0 differ in the {name}{shown}; start all "
                "ranks with the same command and files"
            )


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_tensors(tensors: list[Tensor]) -> None:
    """Overwrite the tensors of every rank, in place, with those of rank 0."""
    if world_size() == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor, src=0)


@contextmanager
def main_first() -> Iterator[None]:
    """Run the body on rank 0 first, then on the other ranks, for files that rank 0 writes and all read."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()
