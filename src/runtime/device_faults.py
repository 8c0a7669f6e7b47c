"""Recognize failed devices, and record collectives with NCCL's flight recorder.

The recorder writes its files on a timeout; torch's `torchfrtrace` reads them.
"""

from __future__ import annotations

import os
from glob import escape, glob
from pathlib import Path

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


def is_device_fault(error: BaseException) -> bool:
    """Return whether an error of torch or NCCL reports a failed device."""
    return isinstance(error, RuntimeError) and _names_hardware(str(error))


def _names_hardware(text: str) -> bool:
    return any(part in text for part in _HARDWARE)


def explain_device_fault(error: BaseException) -> str | None:
    """Return a message about a failed device and what to do; None for any other error."""
    if not is_device_fault(error):
        return None
    reason = next(filter(_names_hardware, str(error).splitlines()))
    return (
        f"a device failed: {reason.strip()}; see nvidia-smi -q and the system log (Xid) for details; reset "
        f"the device or exclude it (CUDA_VISIBLE_DEVICES), then resume with -r auto{describe_recordings()}"
    )


def _prefix() -> str | None:
    """Return the path of the recorded files up to the number of the rank; None if nothing is recorded."""
    for name in _FILE_NAMES:
        if name in os.environ:
            return os.environ[name]
    return None
