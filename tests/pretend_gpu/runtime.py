"""Build the pretended CUDA runtime, and start processes that are preloaded with it.

The library is compiled at first use and kept in the user's cache folder, outside the project.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("cuda_runtime.c")
HEADER = "cuda_runtime_api.h"

REQUIRED = "REQUIRE_PRETEND_GPU"
"""Environment variable with which CI makes sure that no test is skipped."""


def missing() -> str | None:
    """Return the reason why GPUs cannot be pretended here, or None if they can."""
    import torch

    version = torch.version.cuda
    if version is None:
        return f"torch {torch.__version__} is not a CUDA build"
    if version.partition(".")[0] != "13":
        return f"torch is built for CUDA {version}, expected 13"
    if shutil.which("gcc") is None:
        return "gcc is not installed"
    if _headers() is None:
        return f"{HEADER} is not installed (triton brings it)"
    return None


def skip_if_missing() -> None:
    """Skip the running test if GPUs cannot be pretended here, or fail it if `REQUIRED` is set to 1."""
    import pytest

    reason = missing()
    if reason is None:
        return
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"GPUs cannot be pretended: {reason}")
    pytest.skip(f"GPUs cannot be pretended: {reason}")


def preloaded(
    devices: int = 1, capability: int = 90, memory_gb: float = 80.0
) -> dict[str, str]:
    """Return the environment of a process that finds pretended GPUs.

    Args:
        devices: number of GPUs.
        capability: compute capability times ten; below 80 there is no bf16.
        memory_gb: memory of each GPU in 1e9 bytes.
    """
    return os.environ | {
        "LD_PRELOAD": str(library()),
        "PRETEND_DEVICES": str(devices),
        "PRETEND_CAPABILITY": str(capability),
        "PRETEND_MEMORY_GB": str(memory_gb),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(devices))),
    }


def is_preloaded() -> bool:
    """Return whether this process has the pretended runtime."""
    return "pretend_gpu" in os.environ.get("LD_PRELOAD", "")


def library() -> Path:
    """Return the path of the compiled library; compile it if the source has changed."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = home / "pretend_gpu" / f"{digest}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}")
        options = ["-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
        command = ["gcc", *options, f"-I{_headers()}", str(SOURCE)]
        subprocess.run([*command, "-o", str(unfinished)], check=True)
        unfinished.rename(target)
    return target


def _headers() -> Path | None:
    """Return the folder of CUDA's headers that triton installs."""
    found = importlib.util.find_spec("triton")
    for root in (found and found.submodule_search_locations) or []:
        folder = Path(root) / "backends/nvidia/include"
        if (folder / HEADER).exists():
            return folder
    return None
