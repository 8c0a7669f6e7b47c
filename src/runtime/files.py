"""Atomic file writes: a file is written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..core.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

LOCK = ".dfine.lock"
"""Name of the lock file in a folder, held by one run at a time."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers for a full disk and for a reached quota or file size limit."""

LONGEST_NAME = 200
"""Maximum bytes of a name that a temporary name keeps; file systems allow 255 bytes in all."""

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags for reading a file without following a symbolic link or waiting for the writer of a pipe."""

_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.dfine-tmp(\.\w+)?")
"""Pattern of the names that `temporary_path` returns."""


def temporary_path(path: Path, suffix: str = "") -> Path:
    """Return a hidden temporary name in the same folder, with the id of this process.

    Args:
        path: final path of the file.
        suffix: end of the temporary name, for libraries that choose a format by it.
    """
    name = path.name
    while len(os.fsencode(name)) > LONGEST_NAME:
        name = name[:-1]
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{name}.{unique}.dfine-tmp{suffix}")


@contextmanager
def atomic_file(
    path: str | Path, *, keep_previous: str | Path | None = None
) -> Iterator[BinaryIO]:
    """Open a file for binary writing that replaces `path` when the block ends without an error.

    In every case, `path` has either the old or the new content. The temporary file is created exclusively
    (symbolic links are not followed) and locked while it is written, which distinguishes it from a leftover.

    Args:
        path: path of the file.
        keep_previous: another path that keeps the old content; None drops it.

    Raises:
        ResourceError: if the file cannot be written.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        flags = (
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        with open(os.open(temporary, flags, 0o666), "wb") as file:
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep_previous is not None and path.exists():
            _keep(path, Path(keep_previous))
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        written = _remove(temporary)
        if error.errno in DISK_FULL:
            raise DiskFullError(path, written) from error
        raise ResourceError(
            f"{path} cannot be written: {error.strerror or error}"
        ) from error
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> int:
    """Remove a file if possible, and return its size before."""
    size = 0
    with suppress(OSError):  # the file system may have become read-only
        size = path.stat().st_size
        path.unlink()
    return size


class DiskFullError(ResourceError):
    """A disk is full, or a quota or file size limit is reached."""

    def __init__(
        self, path: Path, written: int, needed: int | None = None
    ) -> None:
        """Make the message.

        Args:
            path: path of the file.
            written: bytes that were written.
            needed: bytes of the whole file, if known.
        """
        self.path = path
        self.written = written
        need = "" if needed is None else f"need {needed / 1e6:.1f} MB, "
        free = shutil.disk_usage(path.parent).free
        super().__init__(
            f"disk full writing {path}: {need}free {free / 1e6:.1f} MB, {written / 1e6:.1f} MB written "
            "before the error"
        )


def write_atomically(
    path: str | Path,
    write: Callable[[BinaryIO], object],
    *,
    keep_previous: str | Path | None = None,
) -> None:
    """Replace the content of `path` atomically by what `write` writes.

    Args:
        path: path of the file.
        write: function that is called with a file opened for binary writing.
        keep_previous: as for `atomic_file`.

    Raises:
        ResourceError: if the disk is full or a limit is reached, with the needed and the free space.
    """
    try:
        with atomic_file(path, keep_previous=keep_previous) as file:
            write(file)
    except DiskFullError as error:
        needed = _size_of(write)
        raise DiskFullError(
            error.path, error.written, needed
        ) from error.__cause__


def json_bytes(content: Any, *, indent: int | None = None) -> bytes:
    r"""Return JSON as UTF-8. Characters that UTF-8 cannot encode are written as \udcXX."""
    try:
        return json.dumps(content, ensure_ascii=False, indent=indent).encode()
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent).encode()


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically."""
    write_atomically(
        path, lambda file: file.write(json_bytes(content, indent=1))
    )


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a file and flush it to disk; a symbolic link is not followed.

    Raises:
        ResourceError: if it cannot be written.
    """
    try:
        flags = (
            os.O_WRONLY
            | os.O_CREAT
            | os.O_APPEND
            | os.O_NOFOLLOW
            | os.O_CLOEXEC
        )
        with open(os.open(path, flags, 0o666), "ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror or error}"
        ) from error


def refuse_replacing(path: str | Path) -> None:
    """Check that a result does not replace an existing file, which may be a user's only copy.

    Raises:
        ConfigError: if a file or a folder of this name exists.
    """
    if os.path.lexists(path):
        raise ConfigError(
            f"{path} already exists and would be replaced; remove it or choose another path"
        )


def prepare_output_dir(path: str | Path) -> Path:
    """Create a folder for results and check that files can be written to it.

    Raises:
        ConfigError: if the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = temporary_path(path / "probe")
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"output_dir {path} cannot be written to: {error.strerror or error}"
        ) from None
    return path


def remove_leftovers(folder: Path) -> list[str]:
    """Delete this project's incomplete files that no process is writing any more; return their names."""
    names = []
    for leftover in folder.iterdir():
        if _TEMPORARY.fullmatch(leftover.name) and _is_abandoned(leftover):
            leftover.unlink(missing_ok=True)
            names.append(leftover.name)
    return names


def _is_abandoned(path: Path) -> bool:
    """Return whether a path is a regular file that no process has locked."""
    try:
        with open(os.open(path, _READ_FLAGS), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for one run at a time.

    The lock is released when the process ends for any reason, even if its child processes live on.

    Raises:
        ConfigError: if another process has locked the folder, with its process id; or if the lock file was
            not written by this project.
    """
    path = folder / LOCK
    try:
        flags = (
            os.O_RDWR
            | os.O_CREAT
            | os.O_NOFOLLOW
            | os.O_NONBLOCK
            | os.O_CLOEXEC
        )
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        reason: object = error.strerror or error
        if path.is_symlink():
            reason = "it is a symbolic link"
        raise ConfigError(
            f"{path} cannot be used as a lock: {reason}; choose another --output-dir"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(
            f"{path} is not a regular file; choose another --output-dir"
        )
    with open(descriptor, "r+", errors="replace") as file:
        holder = file.read(32).strip()
        if holder and not holder.isdecimal():
            raise ConfigError(
                f"{path} is not a lock of this project; choose another --output-dir"
            )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{folder} is in use by process {holder or '?'}; choose another --output-dir"
            ) from None
        _held.add(path.resolve())
        file.seek(0)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        # otherwise a worker of a data loader would keep the lock after the run was killed
        os.register_at_fork(after_in_child=file.close)
        try:
            yield
        finally:
            _held.discard(path.resolve())


_held: set[Path] = set()
"""Locks held by this process."""


def is_in_use(folder: Path) -> bool:
    """Return whether another process has locked a folder (`locked`)."""
    path = folder / LOCK
    if path.resolve() in _held:
        return False
    try:
        with open(os.open(path, _READ_FLAGS), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _size_of(write: Callable[[BinaryIO], object]) -> int:
    """Return the number of bytes that `write` would write."""
    counter = _Counter()
    write(counter)
    return counter.size


class _Counter(io.BytesIO):
    """A writable file that counts bytes without keeping them."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.position = 0

    def tell(self) -> int:
        """Return the position."""
        return self.position

    def write(self, block: ReadableBuffer, /) -> int:
        """Count the bytes of a block."""
        length = memoryview(block).nbytes
        self.position += length
        self.size = max(self.size, self.position)
        return length

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Set the position, as in any file."""
        starts = {
            io.SEEK_SET: 0,
            io.SEEK_CUR: self.position,
            io.SEEK_END: self.size,
        }
        self.position = starts[whence] + offset
        return self.position


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name, without removing the first at any time."""
    link = temporary_path(name)
    try:
        try:
            os.link(path, link)
        except OSError:  # some file systems have no hard links
            shutil.copyfile(path, link)
        os.replace(link, name)
    finally:
        # it still exists if both names were the same file already
        link.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Write the entries of a folder to disk, so that a rename survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
