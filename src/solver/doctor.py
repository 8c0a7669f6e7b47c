"""All checks of a machine, in order: first those of each rank alone, then those of all ranks together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..core.counts import counted
from ..core.errors import RankError
from ..runtime.checks import Check, Finding, Skipped, run_check
from ..runtime.distributed import gather_objects, join_group, leave_group
from ..runtime.machine_checks import (
    check_gpus,
    check_open_files,
    check_processor,
    check_reading,
    check_shared_memory,
    check_software,
)
from ..runtime.process import end_with_peers
from ..runtime.rank_checks import check_ranks
from .configuration_trial import Trial
from .memory_check import check_memory
from .precision_checks import check_float32, check_half
from .speed_checks import check_loader, check_run, check_speed

LOADER = "loader"
FLOAT32 = "float32 steps"
MEMORY = "memory"
SPEED = "speed"

QUICK = "--quick"

TIMEOUT = timedelta(minutes=5)
"""Maximum time that ranks wait for each other."""

_FILES_PER_IMAGE = 8
"""Tensors of a target, each of which is an open file while its batch waits."""


def checks_of_rank(
    trial: Trial, *, folder: Path | None, chosen: bool, quick: bool
) -> Iterator[Check]:
    """Yield the checks that a rank makes alone, before it joins the others.

    A rank that fails here, for example for lack of memory, does not make the others wait.

    Args:
        trial: what is tried.
        folder: folder of images whose read speed is measured; None takes that of the configuration.
        chosen: whether the user has chosen the configuration, so that its data is expected to be here.
        quick: leave out the training steps and the memory.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    waiting = processes * trial.waiting_batches
    yield run_check("software", check_software)
    yield run_check("GPUs", lambda: check_gpus(trial.device))
    yield run_check(
        "processor", lambda: check_processor(processes, trial.workers)
    )
    yield run_check(
        "shared memory",
        lambda: check_shared_memory(waiting * trial.batch_bytes()),
    )
    tensors = 1 + _FILES_PER_IMAGE * trial.images
    yield run_check(
        "open files",
        lambda: check_open_files(trial.waiting_batches * tensors),
    )
    yield run_check("data folder", lambda: _check_folder(trial, folder, chosen))
    loader = run_check(LOADER, lambda: _check_loader(trial, chosen))
    yield loader
    data = loader.numbers
    float32 = run_check(
        FLOAT32, _unless(quick, lambda: check_float32(trial, data))
    )
    yield float32
    for name, dtype in (
        ("bf16 steps", torch.bfloat16),
        ("fp16 steps", torch.float16),
    ):
        losses = _losses_on(trial.device, float32)
        work = partial(check_half, trial, dtype, data, losses)
        yield run_check(name, _unless(quick, work))
    yield run_check(MEMORY, _unless(quick, lambda: check_memory(trial, data)))


def checks_of_all_ranks(
    trial: Trial,
    checks: Sequence[Check],
    *,
    chosen: bool,
    connected: bool,
    quick: bool,
) -> Iterator[Check]:
    """Yield the checks that all ranks make together.

    Args:
        trial: what is tried.
        checks: results of `checks_of_rank`, the same on all ranks.
        chosen: whether the user has chosen the configuration.
        connected: whether all ranks have joined, with devices of the same type.
        quick: leave out the training steps.
    """

    def only_if_connected() -> None:
        if not connected:
            raise Skipped("the ranks are not connected, see start")

    def exchange() -> Finding:
        only_if_connected()
        return check_ranks(trial.device)

    yield run_check("ranks", exchange)
    numbers = {check.name: check.numbers for check in checks}
    data = numbers[LOADER]
    memory = numbers[MEMORY]

    def measure_speed() -> Finding:
        only_if_connected()
        if any(c.name == MEMORY and not c.numbers for c in checks):
            raise Skipped("the step does not run, see memory")
        return check_speed(trial, data, memory)

    speed = run_check(SPEED, _unless(quick, measure_speed))
    yield speed

    def estimate() -> Finding:
        if not chosen:
            raise Skipped("no configuration (-c) is given")
        return check_run(trial, data, memory, speed.numbers)

    yield run_check("this run", _unless(quick, estimate))


def check_start(trial: Trial) -> Finding:
    """Join the other ranks, and check that all compute on devices of the same type.

    Raises:
        RankError: if the ranks cannot connect.
    """
    try:
        join_group(trial.device, TIMEOUT)
    except RankError:
        leave_group()  # a group that is half connected would wait
        raise
    end_with_peers(None)
    types = gather_objects(trial.device.type)
    numbers = {"ranks": len(types), "devices": types}
    joined = f"connected: {counted(len(types), 'rank')}"
    if len(set(types)) > 1:
        on_cpu = [str(i) for i, name in enumerate(types) if name == "cpu"]
        text = (
            f"{joined}, but no GPU for rank {', '.join(on_cpu)}; start at most one "
            "process per GPU"
        )
        return Finding(text, numbers, "failed", RankError.exit_code)
    return Finding(joined, numbers)


def _check_folder(trial: Trial, folder: Path | None, chosen: bool) -> Finding:
    if folder is None and not chosen:
        raise Skipped("no configuration (-c) and no folder (--images) is given")
    folder = folder or trial.folder()
    if folder is None:
        raise Skipped("the configuration names no img_folder")
    return check_reading(folder)


def _check_loader(trial: Trial, chosen: bool) -> Finding:
    if not chosen:
        raise Skipped("no configuration (-c) is given")
    return check_loader(trial)


def _unless(quick: bool, check: Any) -> Any:
    def skip() -> Finding:
        raise Skipped(QUICK)

    return skip if quick else check


def _losses_on(device: torch.device, float32: Check) -> list[float] | None:
    """Return the float32 losses of a device, if they were measured."""
    numbers: Mapping[str, Any] = float32.numbers
    key = "losses" if device.type == "cpu" else "gpu_losses"
    return numbers.get(key)
