"""Checks of the machine: software, GPUs, processor, limits of the system, and read speed."""

from __future__ import annotations

import errno
import os
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..core.counts import counted
from ..core.errors import ConfigError, DataError, ResourceError
from ..core.paths import open_regular
from . import limits
from .checks import Finding, Skipped
from .memory import available_memory, system_lines

OLDEST_PYTHON = (3, 10)

DRIVER_FILE = Path("/proc/driver/nvidia/version")

FREE_SHARE = 0.9
"""Less free memory than this fraction of a GPU means that another process uses it."""

SMALL_SHARED_MEMORY = 1e9
"""Bytes; a container has only 64 MB by default, which is too little for workers and for NCCL."""

OPEN_FILES = 1024
"""Open files that a process needs besides the batches of its workers; the usual limit."""

FILES_READ = 200
BYTES_READ = 256 << 20
SLOW_FILES = 50
"""Files per second below which storage is probably slower than any GPU."""

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def check_software() -> Finding:
    """Return the versions of Python, torch, CUDA, cuDNN, NCCL and the driver."""
    versions = {
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "CUDA": torch.version.cuda,
        "cuDNN": _cudnn_version(),
        "NCCL": nccl_version(),
        "driver": driver_version(),
    }
    known = {name: value for name, value in versions.items() if value}
    text = ", ".join(f"{name} {value}" for name, value in known.items())
    if versions["CUDA"] is None:
        text += "; this build of torch is for CPUs only"
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise ConfigError(f"{text}; expected Python {oldest} or newer")
    return Finding(text, {**versions, "system": platform.platform()})


def _cudnn_version() -> str | None:
    if torch.version.cuda is None or not torch.backends.cudnn.is_available():
        return None
    return str(torch.backends.cudnn.version())


def nccl_version() -> str | None:
    """Return the version of NCCL in this build of torch, or None without NCCL."""
    if torch.version.cuda is None or not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, or None if it is not loaded here."""
    text = "\n".join(system_lines(DRIVER_FILE))
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return found.group(1) if found else None


def check_gpus(device: torch.device) -> Finding:
    """Describe the GPUs of this process and multiply two matrices on each.

    Args:
        device: device of this rank; with several local processes, only this GPU is checked.
    """
    if not torch.cuda.is_available():
        driver = driver_version()
        if driver and torch.version.cuda:
            text = (
                f"driver {driver} is loaded, but torch (CUDA {torch.version.cuda}) finds no GPU; compare "
                "with nvidia-smi and CUDA_VISIBLE_DEVICES: the driver may be too old for this CUDA"
            )
            return Finding(text, status="warning")
        raise Skipped("torch finds no GPU")
    alone = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) == 1
    indices = range(torch.cuda.device_count())
    if not alone and device.type == "cuda":
        indices = range(device.index, device.index + 1)
    entries = []
    texts = []
    occupied = []
    for index in indices:
        gpu = torch.device("cuda", index)
        entry = _describe_gpu(gpu)
        _multiply(gpu)
        entries.append(entry)
        texts.append(
            f"cuda:{index} {entry['name']}, {entry['memory_gb']:.0f} GB ({entry['free_gb']:.0f} free), "
            f"capability {entry['capability']}, {'bf16' if entry['bf16'] else 'no bf16'}"
        )
        if entry["free_gb"] < FREE_SHARE * entry["memory_gb"]:
            occupied.append(f"cuda:{index}")
    text = "; ".join(texts)
    if occupied:
        return Finding(
            f"{text}; other processes use memory of {', '.join(occupied)} (see nvidia-smi)",
            {"gpus": entries},
            "warning",
        )
    return Finding(text, {"gpus": entries})


def _describe_gpu(gpu: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(gpu)
    with torch.cuda.device(gpu):
        free, total = torch.cuda.mem_get_info()
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "index": gpu.index,
        "name": properties.name,
        "memory_gb": total / 1e9,
        "free_gb": free / 1e9,
        "capability": f"{properties.major}.{properties.minor}",
        "bf16": bf16,
    }


def _multiply(gpu: torch.device) -> None:
    """Multiply two small matrices, and raise an error if the product is wrong."""
    ones = torch.ones(64, 64, device=gpu)
    if not bool((ones @ ones == 64).all()):
        raise ResourceError(
            f"{gpu} computed a wrong product of two matrices; check it with nvidia-smi -q and dmesg (Xid)"
        )


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def check_processor(processes: int, workers: int) -> Finding:
    """Compare cores with the processes of a run.

    Args:
        processes: ranks on this machine.
        workers: loader workers of each rank.
    """
    cores = usable_cores()
    memory = available_memory()
    needed = processes * (1 + workers)
    threads = torch.get_num_threads()
    text = (
        f"{counted(cores, 'core')}, {memory / 1e9:.1f} GB of memory available, "
        f"{counted(threads, 'thread')}"
    )
    numbers = {
        "cores": cores,
        "available_gb": memory / 1e9,
        "processes": needed,
        "threads": threads,
    }
    if needed > cores:
        return Finding(
            f"{text}; {counted(processes, 'rank')} and {counted(workers, 'loader worker')} for each "
            f"are {needed} processes",
            numbers,
            "warning",
        )
    return Finding(text, numbers)


def check_shared_memory(needed: float) -> Finding:
    """Compare the size of `/dev/shm` with what loader workers need.

    Args:
        needed: bytes of all batches that wait there at a time; 0 without workers.

    Raises:
        ResourceError: if it is too small.
    """
    place = limits.SHARED_MEMORY
    if not place.is_dir():
        raise Skipped(f"this system has no {place}")
    usage = shutil.disk_usage(place)
    if usage.free < needed:
        raise ResourceError(
            f"the waiting batches of the loader need {needed / 1e6:.0f} MB: "
            f"{limits.describe_limit(errno.ENOSPC)}"
        )
    text = f"{usage.total / 1e6:.0f} MB, {usage.free / 1e6:.0f} MB free"
    if needed:
        text += f", {needed / 1e6:.0f} MB needed by workers"
    numbers = {
        "total_mb": usage.total / 1e6,
        "free_mb": usage.free / 1e6,
        "needed_mb": needed / 1e6,
    }
    if usage.total < SMALL_SHARED_MEMORY:
        return Finding(
            f"{text}; too small for larger batches and for NCCL: start the container with --shm-size=8g",
            numbers,
            "warning",
        )
    return Finding(text, numbers)


def check_open_files(waiting: int) -> Finding:
    """Compare the limit of open files with the number that a run needs.

    Args:
        waiting: open files of the batches that wait in shared memory.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OPEN_FILES // 4 + waiting
    shown_hard = "unlimited" if hard == resource.RLIM_INFINITY else hard
    text = f"{soft} (ulimit -n), at most {shown_hard}, about {needed} needed"
    numbers = {"soft": soft, "hard": hard, "needed": needed}
    if soft != resource.RLIM_INFINITY and soft < needed:
        advice = limits.describe_limit(errno.EMFILE).partition("; ")[2]
        return Finding(f"{text}; {advice}", numbers, "warning")
    return Finding(text, numbers)


def check_reading(folder: Path) -> Finding:
    """Measure how fast image files of a folder are read, without the copies that the system keeps in memory.

    Args:
        folder: folder of images, which are also looked for in its folders.

    Raises:
        DataError: if the folder does not exist or has no images.
    """
    if not folder.is_dir():
        raise DataError(
            f"the image folder {folder} does not exist or is not a folder; copy or mount the data there, "
            "or name another folder"
        )
    sizes: list[int] = []
    started = time.perf_counter()
    seconds = 0.0
    for path in islice(_images_in(folder), FILES_READ):
        _forget_cached(path)
        started = time.perf_counter()
        with open_regular(path) as file:
            sizes.append(len(file.read()))
        seconds += time.perf_counter() - started
        if sum(sizes) > BYTES_READ:
            break
    if not sizes:
        raise DataError(f"{folder} has no image files ({', '.join(_IMAGES)})")
    speed = sum(sizes) / seconds
    files = len(sizes) / seconds
    numbers = {
        "folder": str(folder),
        "files": len(sizes),
        "bytes": sum(sizes),
        "mb_per_second": speed / 1e6,
        "files_per_second": files,
    }
    text = (
        f"{folder}: {speed / 1e6:.0f} MB/s, {files:.0f} files/s with one reader ({len(sizes)} files, "
        f"{sum(sizes) / 1e6:.1f} MB)"
    )
    if files < SLOW_FILES:
        return Finding(
            f"{text}; this storage is slow: copy the data to a local disk",
            numbers,
            "warning",
        )
    return Finding(text, numbers)


def _images_in(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(_IMAGES):
                yield Path(place, name)


def _forget_cached(path: Path) -> None:
    """Ask the system to drop its copy of a file, so that storage itself is measured."""
    with open_regular(path) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
