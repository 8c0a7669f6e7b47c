"""Devices that fail, and what NCCL's flight recorder knows of the collectives before: written on a timeout, read by torch's `torchfrtrace`."""

from __future__ import annotations

import os
from glob import escape, glob
from pathlib import Path

RECORDED_COLLECTIVES = 20_000

_SIZE_NAMES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_FILE_NAMES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
"""The present names of torch's variables and their earlier ones."""

_HARDWARE = (
    "ECC error",
    "NVLink error",
    "hardware stack error",
    "a hardware error",
    "unspecified launch failure",
    "is/are busy or unavailable",
)
"""What CUDA says when a device itself has failed; other errors of CUDA may be faults of a program."""


def record_collectives(folder: Path, rank: int) -> None:
    """Before the group is joined: let NCCL remember its last collectives and write them if one times out. What a user has set counts."""
    if not any(name in os.environ for name in _SIZE_NAMES):
        os.environ[_SIZE_NAMES[0]] = str(RECORDED_COLLECTIVES)
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if not any(name in os.environ for name in _FILE_NAMES):
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[_FILE_NAMES[0]] = str(folder.absolute() / "flight_recorder.rank")
    Path(f"{_prefix()}{rank}").unlink(missing_ok=True)  # of an earlier run


def recorded_files() -> list[str]:
    """Return what the flight recorders of the ranks have written, as far as it can be seen from here."""
    return sorted(glob(f"{escape(prefix)}[0-9]*")) if (prefix := _prefix()) else []


def describe_recordings() -> str:
    """Return the end of a message that names what was recorded; empty if nothing was."""
    files = recorded_files()
    return f"; flight recorder (torchfrtrace reads it): {', '.join(files)}" if files else ""


def is_device_fault(error: BaseException) -> bool:
    """Return whether an error of torch or NCCL says that a device has failed."""
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _HARDWARE)


def explain_device_fault(error: BaseException) -> str | None:
    """Say what to do about a device that has failed; None for any other error."""
    if not is_device_fault(error):
        return None
    reason = next(line for line in str(error).splitlines() if any(part in line for part in _HARDWARE))
    return (
        f"a device failed: {reason.strip()}; nvidia-smi -q and the system's log (Xid) say more; reset it or leave it out "
        f"(CUDA_VISIBLE_DEVICES), then go on with -r auto{describe_recordings()}"
    )


def _prefix() -> str | None:
    return next((os.environ[name] for name in _FILE_NAMES if name in os.environ), None)
