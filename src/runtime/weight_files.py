"""Tensor files: written with a digest of their content, read without running anything that they contain.

Only `torch.load(weights_only=True)` and safetensors are used, and the archive is looked at before it is read. The
digest stands in the comment field of the zip archive that torch writes, so that any torch can read the file. A mark
within the content says that there must be one: a file that was damaged at its end, where the digest is, is noticed too.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from ..core.errors import CheckpointError, first_line
from ..core.paths import did_you_mean_file
from .files import write_atomically

EXPANSION_LIMIT = 1.1
"""An archive may unpack to this many times its own size; torch writes its records uncompressed."""


_ALWAYS_ALLOWED = 1 << 20
"""Bytes of a tensor in a file of any size: one that was expanded from a single number is common and harmless."""

MARK, WRITER = "written_by", "dfine_dinov3 with a digest"
"""First entry of the content of our own files; files written before version 0.2 have none."""

_HEAD = 1 << 16
"""Bytes at the start of a file that hold the mark."""

_DIGEST_PREFIX = b"sha256:"
_COMMENT_LENGTH = len(_DIGEST_PREFIX) + 64


def write_tensor_file(
    path: str | Path, content: dict[str, Any], *, keep_previous: str | Path | None = None
) -> None:
    """Write tensors and plain containers atomically, with our mark and their digest.

    Raises:
        ResourceError: if the disk is full.
    """

    def write(file: BinaryIO) -> None:
        hashing = _HashingFile(file)
        try:
            torch.save({MARK: WRITER, **content}, cast(BinaryIO, hashing))  # it calls write and flush alone
        except RuntimeError as error:  # torch's writer hides what the file said
            raise hashing.failure or error from None
        comment = _DIGEST_PREFIX + hashing.sha256.hexdigest().encode()
        file.seek(-2, 2)  # the archive ends with the length of its comment
        file.write(len(comment).to_bytes(2, "little") + comment)

    write_atomically(path, write, keep_previous=keep_previous)


def verify_digest(path: Path) -> bool | None:
    """Compare a file with the digest inside it: None if it carries none, else whether they agree."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        if size < _COMMENT_LENGTH + 2:
            return None
        file.seek(size - _COMMENT_LENGTH - 2)
        tail = file.read()
        if tail[:2] != _COMMENT_LENGTH.to_bytes(2, "little") or not tail[2:].startswith(_DIGEST_PREFIX):
            return None
        file.seek(0)
        sha256 = _digest(file, size - len(tail))
    sha256.update(b"\0\0")
    return tail[2 + len(_DIGEST_PREFIX) :] == sha256.hexdigest().encode()


def is_marked_tensor_file(path: Path) -> bool:
    """Return whether a file was written by `write_tensor_file`, although it may be damaged by now."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    return (MARK.encode() in head and WRITER.encode() in head) or verify_digest(path) is not None


class _HashingFile:
    """Passes writes on and digests them; remembers why one failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, block: bytes) -> int:
        self.sha256.update(block)
        try:
            return self.file.write(block)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


def read_tensor_file(path: str | Path) -> Any:
    """Read a .pth/.pt file or a safetensors file, on the CPU.

    Returns:
        What the file holds, without our mark: tensors and plain containers (for safetensors a flat dict of tensors).

    Raises:
        CheckpointError: if the file is missing, truncated, compressed beyond reason, or holds anything but data.
    """
    path = checked_path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    _refuse_zip_bomb(path)
    digest_fits = verify_digest(path)
    if digest_fits is False:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged: its content does not match the digest inside it"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch guesses at what is odd; below is one line that says it
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(
            r"(?:global|class) ([\w.]+)", str(error)
        )
        what = f"it refers to {found[1]}" if found else "its pickle is damaged or holds more than tensors"
        raise CheckpointError(f"{path} is not a file of plain tensors: {what}; it was not loaded") from None
    except Exception as error:  # torch's readers raise whatever they stumble over: KeyError, AssertionError, struct.error ...
        if "weights_only" in str(error):  # torch would advise to load it all the same
            raise CheckpointError(
                f"{path} is a TorchScript archive or a tar file, which may hold code; it was not loaded"
            ) from None
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged or no torch file: {first_line(error)}"
        ) from None
    _refuse_hollow(path, content)
    if isinstance(content, dict) and content.pop(MARK, None) == WRITER and digest_fits is None:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged: the digest at its end is missing or cut; if another "
            f"program saved this content again, let it leave out the entry '{MARK}'"
        )
    return content


def checked_path(path: str | Path) -> Path:
    """Return the path of an existing, non-empty local file.

    Raises:
        CheckpointError: for a URL, a missing path, a folder or an empty file.
    """
    path = Path(refuse_address(path)).expanduser()
    if not path.exists():
        hint = did_you_mean_file(path)
        raise CheckpointError(f"{path} does not exist (looked from {Path.cwd()}){hint}")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    return path


def refuse_address(path: str | Path) -> str:
    """Return a path as text; made a `Path` before, an address would lose a slash and look like a file that is missing.

    Raises:
        CheckpointError: for a URL.
    """
    if re.match(r"[a-z][a-z0-9+.-]*://", text := str(path)):
        raise CheckpointError(
            f"{text} is an address; download the file yourself, check it, and give its local path"
        )
    return text


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return _digest(file, Path(path).stat().st_size).hexdigest()


def _digest(file: BinaryIO, length: int) -> hashlib._Hash:
    """Digest the next `length` bytes, piece by piece."""
    sha256 = hashlib.sha256()
    while block := file.read(min(length, 1 << 20)):
        sha256.update(block)
        length -= len(block)
    return sha256


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged or no safetensors file: {first_line(error)}"
        ) from None


def _refuse_zip_bomb(path: Path) -> None:
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OverflowError, UnicodeDecodeError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged: {first_line(error)}"
        ) from None
    unpacked, packed = sum(record.file_size for record in records), path.stat().st_size
    if (
        any(record.compress_type != zipfile.ZIP_STORED for record in records)
        and unpacked > EXPANSION_LIMIT * packed
    ):
        raise CheckpointError(
            f"{path} has {packed} bytes but unpacks to {unpacked}; torch does not write such files, so it was not loaded"
        )
    if unpacked > EXPANSION_LIMIT * packed:
        raise CheckpointError(
            f"{path} has {packed} bytes but claims records of {unpacked}; it was not loaded"
        )


def _refuse_hollow(path: Path, content: Any) -> None:
    """Make sure that tensors are plain numbers that the file holds: a few bytes can stand for terabytes, by strides of 0, without data, or sparsely."""
    size, found, seen = path.stat().st_size, [content], set()
    while found:  # not by recursion, and each thing once: a file may nest deep and repeat itself
        value = found.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            found += value.values()
        elif isinstance(value, list | tuple | set):
            found += value
        elif isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
                raise CheckpointError(
                    f"{path} holds a tensor that is sparse, quantized or without data, expected plain ones; it was not loaded"
                )
            if value.numel() * value.element_size() > max(EXPANSION_LIMIT * size, _ALWAYS_ALLOWED):
                raise CheckpointError(
                    f"{path} has {size} bytes but holds a tensor of {value.numel() * value.element_size()}; it was not loaded"
                )
