"""Reading of tensor files without running anything that they contain.

Only `torch.load(weights_only=True)` and safetensors are used, and the archive is looked at before it is read.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError

EXPANSION_LIMIT = 1.1
"""An archive may unpack to this many times its own size; torch writes its records uncompressed."""


def read_tensor_file(path: str | Path) -> Any:
    """Read a .pth/.pt file or a safetensors file, on the CPU.

    Returns:
        What the file holds: tensors and plain containers (for safetensors a flat dict of tensors).

    Raises:
        CheckpointError: if the file is missing, truncated, compressed beyond reason, or holds anything but data.
    """
    path = checked_path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    _refuse_zip_bomb(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"(?:Unsupported|global|class) ([\w.]+)", str(error))
        what = f"it refers to {found[1]}" if found else "its pickle is damaged or holds more than tensors"
        raise CheckpointError(f"{path} is not a file of plain tensors: {what}; it was not loaded") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} ({path.stat().st_size} bytes) is damaged or no torch file: {_first_line(error)}") from None


def checked_path(path: str | Path) -> Path:
    """Return the path of an existing, non-empty local file.

    Raises:
        CheckpointError: for a URL, a missing path, a folder or an empty file.
    """
    text = str(path)
    if re.match(r"[a-z][a-z0-9+.-]*://", text):
        raise CheckpointError(f"{text} is an address; download the file yourself, check it, and give its local path")
    path = Path(text).expanduser()
    if not path.exists():
        raise CheckpointError(f"{path} does not exist (looked from {Path.cwd()})")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    return path


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} ({path.stat().st_size} bytes) is damaged or no safetensors file: {_first_line(error)}") from None


def _refuse_zip_bomb(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    unpacked, packed = sum(record.file_size for record in records), path.stat().st_size
    if any(record.compress_type != zipfile.ZIP_STORED for record in records) and unpacked > EXPANSION_LIMIT * packed:
        raise CheckpointError(f"{path} has {packed} bytes but unpacks to {unpacked}; torch does not write such files, so it was not loaded")
    if unpacked > EXPANSION_LIMIT * packed:
        raise CheckpointError(f"{path} has {packed} bytes but claims records of {unpacked}; it was not loaded")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
