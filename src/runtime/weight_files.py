"""Write tensor files with a digest of their content, and read them without running code from the file.

Files are read only with `torch.load(weights_only=True)` and safetensors, after a check of the archive. The
digest is in the comment field of torch's zip archive, so any version of torch can read the file. A mark in
the content shows that there must be a digest, so damage at the end of the file, where it is, is also found.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from ..core.errors import CheckpointError, first_line
from ..core.paths import did_you_mean_file, open_regular
from .files import write_atomically
from .warning_filters import without_warnings

EXPANSION_LIMIT = 1.1
"""Maximum ratio of unpacked to packed size of an archive; torch writes its records uncompressed."""


_ALWAYS_ALLOWED = 1 << 20
"""Bytes that a tensor may have in a file of any size; small tensors expanded from one number are common."""

MARK = "written_by"
WRITER = "dfine_dinov3 with a digest"
"""Key and value of the first entry in this project's files; files written before version 0.2 lack it."""

_HEAD = 1 << 16
"""Bytes at the start of a file that contain the mark."""

_DIGEST_PREFIX = b"sha256:"
_COMMENT_LENGTH = len(_DIGEST_PREFIX) + 64


def write_tensor_file(
    path: str | Path,
    content: dict[str, Any],
    *,
    keep_previous: str | Path | None = None,
) -> None:
    """Write tensors and plain containers atomically, with the mark and a digest.

    Raises:
        ResourceError: if the disk is full.
    """

    def write(file: BinaryIO) -> None:
        hashing = _HashingFile(file)
        marked = {MARK: WRITER, **content}
        try:
            torch.save(
                marked, cast(BinaryIO, hashing)
            )  # calls only write and flush
        except (
            RuntimeError
        ) as error:  # torch's writer hides the error of the file
            raise hashing.failure or error from None
        comment = _DIGEST_PREFIX + hashing.sha256.hexdigest().encode()
        file.seek(-2, 2)  # the archive ends with the length of its comment
        file.write(len(comment).to_bytes(2, "little") + comment)

    write_atomically(path, write, keep_previous=keep_previous)


def verify_digest(path: Path) -> bool | None:
    """Return whether a file matches the digest inside it; None if there is no digest."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if size < _COMMENT_LENGTH + 2:
            return None
        file.seek(size - _COMMENT_LENGTH - 2)
        tail = file.read()
        start = _COMMENT_LENGTH.to_bytes(2, "little") + _DIGEST_PREFIX
        if not tail.startswith(start):
            return None
        file.seek(0)
        sha256 = _digest(file, size - len(tail))
    sha256.update(b"\0\0")
    return tail.removeprefix(start) == sha256.hexdigest().encode()


def is_marked_tensor_file(path: Path) -> bool:
    """Return whether `write_tensor_file` wrote a file, even if it has been damaged since."""
    with open_regular(path) as file:
        head = file.read(_HEAD)
    if MARK.encode() in head and WRITER.encode() in head:
        return True
    return verify_digest(path) is not None


class _HashingFile:
    """A file that forwards writes, computes their digest and stores the error of a failed write."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
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
        The content without the mark: tensors and plain containers (for safetensors, a flat dict of tensors).

    Raises:
        CheckpointError: if the file is missing, truncated, excessively compressed, or contains anything but
            data.
    """
    path = checked_path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    _refuse_zip_bomb(path)
    digest_fits = verify_digest(path)
    if digest_fits is False:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged: its content does not match the digest "
            "inside it"
        )
    try:
        # torch's guesses at the cause; the messages below are clearer
        with without_warnings():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        found = re.search(r"GLOBAL ([\w.]+)", text)
        if not found:
            found = re.search(r"(?:global|class) ([\w.]+)", text)
        what = "its pickle is damaged or contains more than tensors"
        if found:
            what = f"it refers to {found[1]}"
        raise CheckpointError(
            f"{path} is not a file of plain tensors: {what}; it was not loaded"
        ) from None
    except Exception as error:  # torch's readers raise KeyError, AssertionError, struct.error and others
        # torch's message advises to load the file nevertheless
        if "weights_only" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript archive or a tar file, which may contain code; it was not loaded"
            ) from None
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged or not a torch file: "
            f"{first_line(error).partition('. ')[0]}"
        ) from None
    _refuse_tensors_without_data(path, content)
    has_mark = isinstance(content, dict) and content.pop(MARK, None) == WRITER
    if has_mark and digest_fits is None:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged: the digest at its end is missing or "
            f"truncated; if another program saved this content again, it must leave out the entry '{MARK}'"
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
        raise CheckpointError(
            f"{path} does not exist (looked from {Path.cwd()}){hint}"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    return path


def refuse_address(path: str | Path) -> str:
    """Return a path as text after checking that it is not a URL.

    Call this before making a `Path`, which would remove a slash from the URL.

    Raises:
        CheckpointError: for a URL.
    """
    text = str(path)
    if text.startswith("hf://"):
        raise CheckpointError(
            f"{text} is a model on Hugging Face Hub; fetch it first: dfine models pull {text}"
        )
    if re.match(r"[a-z][a-z0-9+.-]*://", text):
        raise CheckpointError(
            f"{text} is a URL; download the file yourself, check it, and give its local path"
        )
    return text


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open_regular(path) as file:
        return _digest(file, Path(path).stat().st_size).hexdigest()


def _digest(file: BinaryIO, length: int) -> hashlib._Hash:
    """Return the digest of the next `length` bytes, read in blocks."""
    sha256 = hashlib.sha256()
    while length > 0:
        block = file.read(min(length, 1 << 20))
        if not block:
            break
        sha256.update(block)
        length -= len(block)
    return sha256


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    texts: Mapping[str, str],
) -> None:
    """Write a safetensors file atomically.

    Args:
        path: path of the file.
        tensors: tensors by name; memory that two of them share is written twice.
        texts: entries of the header's metadata.

    Raises:
        ResourceError: if the disk is full.
    """
    from safetensors.torch import save

    # safetensors refuses tensors that share memory
    own = {name: value.detach().clone() for name, value in tensors.items()}
    content = save(own, {"format": "pt", **texts})
    write_atomically(path, lambda file: file.write(content))


def safetensors_texts(path: str | Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = checked_path(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged_safetensors(path, error) from None


def _damaged_safetensors(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} ({path.stat().st_size} bytes) is damaged or not a safetensors file: {first_line(error)}"
    )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged_safetensors(path, error) from None


def _refuse_zip_bomb(path: Path) -> None:
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (
        zipfile.BadZipFile,
        ValueError,
        OverflowError,
        UnicodeDecodeError,
        NotImplementedError,
    ) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged: {first_line(error)}"
        ) from None
    unpacked = sum(record.file_size for record in records)
    packed = path.stat().st_size
    if unpacked <= EXPANSION_LIMIT * packed:
        return
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(
            f"{path} has {packed} bytes but unpacks to {unpacked}; torch does not write such files, so it "
            "was not loaded"
        )
    raise CheckpointError(
        f"{path} has {packed} bytes but claims records of {unpacked}; it was not loaded"
    )


def _refuse_tensors_without_data(path: Path, content: Any) -> None:
    """Check that tensors are dense and that the file contains their data.

    Strides of 0, meta tensors and sparse tensors can make a few bytes in the file stand for terabytes.
    """
    size = path.stat().st_size
    found = [content]
    seen = set()
    while found:  # iterative, visiting each object once, because content may be deeply nested and repeated
        value = found.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            found += value.values()
        elif isinstance(value, list | tuple | set):
            found += value
        elif isinstance(value, torch.Tensor):
            is_special = value.is_meta or value.is_quantized or value.is_nested
            if is_special or value.layout != torch.strided:
                raise CheckpointError(
                    f"{path} contains a tensor that is sparse, quantized or without data, expected dense "
                    "tensors; it was not loaded"
                )
            num_bytes = value.numel() * value.element_size()
            if num_bytes > max(EXPANSION_LIMIT * size, _ALWAYS_ALLOWED):
                raise CheckpointError(
                    f"{path} has {size} bytes but contains a tensor of {num_bytes} bytes; it was not loaded"
                )
