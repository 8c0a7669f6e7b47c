"""Recognize failed devices, and record collectives with NCCL's flight recorder.

The recorder writes its files on a timeout; torch's `torchfrtrace` reads them.
"""

from __future__ import annotations

import os
import re
from glob import escape, glob
from pathlib import Path

import torch

from ..core.errors import first_line

RECORDED_COLLECTIVES = 20_000

_SIZE_NAMES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_FILE_NAMES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
"""Current and earlier names of torch's environment variables."""

_HARDWARE = (
    "ECC error",
    "NVLink error",
    "hardware stack error",
    "a hardware error",
    "unspecified launch failure",
    "is/are busy or unavailable",
)
"""Parts of CUDA error messages about a failed device; other CUDA errors may be bugs of a program."""


_COLLECTIVE = (
    "Duplicate GPU",
    "ncclInvalidUsage",
    "ncclInvalidArgument",
    "ncclSystemError",
    "ncclUnhandledCudaError",
    "ncclInternalError",
)
"""Parts of NCCL's error messages about this rank itself, not about a rank that does not respond."""

_NO_MEMORY = (
    "CUDA error: out of memory",
    "CUDA out of memory",
    "Cuda failure 2",
    "'out of memory'",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
"""Parts of messages about memory that libraries, contexts or NCCL allocate, outside torch's allocator."""


def record_collectives(folder: Path, rank: int) -> None:
    """Make NCCL record its last collectives and write them if one times out.

    Call this before joining the group. Environment variables set by the user take precedence.
    """
    if not any(name in os.environ for name in _SIZE_NAMES):
        os.environ[_SIZE_NAMES[0]] = str(RECORDED_COLLECTIVES)
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if not any(name in os.environ for name in _FILE_NAMES):
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[_FILE_NAMES[0]] = str(
            folder.absolute() / "flight_recorder.rank"
        )
    Path(f"{_prefix()}{rank}").unlink(missing_ok=True)  # file of an earlier run


def recorded_files() -> list[str]:
    """Return the flight recorder files of all ranks that this machine can see."""
    prefix = _prefix()
    if not prefix:
        return []
    return sorted(glob(f"{escape(prefix)}[0-9]*"))


def describe_recordings() -> str:
    """Return the end of a message that names the recorded files; "" if there are none."""
    files = recorded_files()
    if not files:
        return ""
    return f"; flight recorder (torchfrtrace reads it): {', '.join(files)}"


def is_own_fault(error: BaseException) -> bool:
    """Return whether an error of a collective is about this rank itself and not about another one."""
    text = str(error)
    return (
        is_device_fault(error)
        or lacks_device_memory(error)
        or (
            isinstance(error, RuntimeError)
            and any(part in text for part in _COLLECTIVE)
        )
    )


def lacks_device_memory(error: BaseException) -> bool:
    """Return whether an allocation on a device failed, by torch's allocator or outside of it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        part in text for part in _NO_MEMORY
    )


def original_text(error: BaseException) -> str:
    """Return the first line of an error of torch, and what NCCL reports as its last error."""
    text = re.sub(r"^\[[^]]*\] ", "", str(error))  # the place in torch's source
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    for number, line in enumerate(lines):
        if line.startswith("Last error:"):
            rest = [
                line.removeprefix("Last error:").strip(),
                *lines[number + 1 :],
            ]
            reason = " ".join(part for part in rest if part)
            if reason:
                return f"{lines[0]}: {reason}"
    return lines[0]


def is_device_fault(error: BaseException) -> bool:
    """Return whether an error of torch or NCCL reports a failed device."""
    return isinstance(error, RuntimeError) and _names_hardware(str(error))


def _names_hardware(text: str) -> bool:
    return any(part in text for part in _HARDWARE)


def explain_compiler_fault(error: BaseException) -> str | None:
    """Return a message about an error of torch's compiler and what to do; None for any other error."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "TorchDynamoException" not in names:  # importing the class takes seconds
        return None
    cause = getattr(error, "inner_exception", error)
    reason = type(cause).__name__
    if str(cause).strip():
        reason += f": {original_text(cause)}"
    return (
        f"torch.compile failed with torch {torch.__version__}: {reason}; leave it out (train: -u compile=~, "
        "with -r auto --override if the run has begun; benchmark: --engines torch), or try another release "
        "of torch"
    )


def explain_device_fault(error: BaseException) -> str | None:
    """Return a message about a failed device and what to do; None for any other error."""
    if not is_device_fault(error):
        return _explain_software_fault(error)
    reason = next(filter(_names_hardware, str(error).splitlines()))
    return (
        f"a device failed: {reason.strip()}; see nvidia-smi -q and the system log (Xid) for details; reset "
        f"the device or exclude it (CUDA_VISIBLE_DEVICES), then resume with -r auto{describe_recordings()}"
    )


def _explain_software_fault(error: BaseException) -> str | None:
    """Return a message about a fault of the set-up or of a collective; None for any other error."""
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if "no kernel image is available" in text:
        return (
            f"torch {torch.__version__} has no kernels for this GPU: {first_line(error)}; it has kernels for "
            f"{', '.join(torch.cuda.get_arch_list()) or 'other GPUs'}; install a build of torch for this GPU "
            "(https://pytorch.org/get-started), or use -d cpu"
        )
    if not any(part in text for part in _COLLECTIVE):
        return None
    reason = original_text(error)
    return f"ranks cannot exchange values: {reason}{_collective_advice(text)}{describe_recordings()}"


def _collective_advice(text: str) -> str:
    if "Duplicate GPU" in text:
        return (
            "; two ranks use the same GPU: start at most one process per GPU, without -d cuda:N and with the "
            "same CUDA_VISIBLE_DEVICES for all processes of a machine"
        )
    if "/dev/shm" in text or "shared memory" in text:
        return "; NCCL needs more shared memory: start the container with --shm-size=8g or --ipc=host"
    return "; start again with NCCL_DEBUG=WARN to see what NCCL reports (docs/cluster.md)"


def _prefix() -> str | None:
    """Return the path of the recorded files up to the number of the rank; None if nothing is recorded."""
    for name in _FILE_NAMES:
        if name in os.environ:
            return os.environ[name]
    return None
