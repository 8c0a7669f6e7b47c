"""Files that are whole or not there: written under a temporary name, flushed to disk, then renamed."""

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
"""Name of the file that one run at a time holds in its folder."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk, a quota or a limit is reached."""

LONGEST_NAME = 200
"""Bytes of a name that a temporary name keeps; file systems allow 255 in all."""

_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.dfine-tmp(\.\w+)?")
"""Names that `temporary_path` gives, and nobody else."""


def temporary_path(path: Path, suffix: str = "") -> Path:
    """Return a name for a file that becomes `path` when it is complete: beside it, hidden, with this process's id.

    Args:
        path: what the file will be called.
        suffix: what the temporary name must end with, for libraries that choose a format by it.
    """
    name = path.name
    while len(os.fsencode(name)) > LONGEST_NAME:
        name = name[:-1]
    return path.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}.dfine-tmp{suffix}")


@contextmanager
def atomic_file(path: str | Path, *, keep_previous: str | Path | None = None) -> Iterator[BinaryIO]:
    """Give a file for binary writing that becomes `path` when the block ends without an error.

    Whatever happens, `path` holds the old content or the new. The temporary file is created by this process alone
    (symbolic links are not followed) and locked while it is written, which tells it from a leftover.

    Args:
        path: the file.
        keep_previous: another name under which the old content stays.

    Raises:
        ResourceError: if it cannot be written.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o666), "wb") as file:
            with suppress(OSError):  # a file system without locks
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
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}") from error
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> int:
    """Remove a file if that is possible, and return the size that it had."""
    size = 0
    with suppress(OSError):  # a file system that has become read-only
        size = path.stat().st_size
        path.unlink()
    return size


class DiskFullError(ResourceError):
    """A disk, a quota or a limit of file size is reached."""

    def __init__(self, path: Path, written: int, needed: int | None = None) -> None:
        """Describe it; `written` and `needed` are bytes of the file `path`."""
        self.path, self.written = path, written
        need = "" if needed is None else f"need {needed / 1e6:.1f} MB, "
        free = shutil.disk_usage(path.parent).free
        super().__init__(
            f"disk full writing {path}: {need}free {free / 1e6:.1f} MB, {written / 1e6:.1f} MB written when it ended"
        )


def write_atomically(
    path: str | Path, write: Callable[[BinaryIO], object], *, keep_previous: str | Path | None = None
) -> None:
    """Replace `path` by what `write` puts into a file; whatever happens, `path` holds the old content or the new.

    Args:
        path: the file.
        write: gets a file opened for binary writing.
        keep_previous: another name under which the old content stays.

    Raises:
        ResourceError: if the disk is full or a limit is reached, with what is needed and what is free.
    """
    try:
        with atomic_file(path, keep_previous=keep_previous) as file:
            write(file)
    except DiskFullError as error:
        raise DiskFullError(error.path, error.written, _size_of(write)) from error.__cause__


def json_bytes(content: Any, *, indent: int | None = None) -> bytes:
    """Return JSON as UTF-8; what UTF-8 cannot hold, as in file names of another encoding, is written as \\udcXX."""
    try:
        return json.dumps(content, ensure_ascii=False, indent=indent).encode()
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent).encode()


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, lambda file: file.write(json_bytes(content, indent=1)))


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file and bring it to disk; a symbolic link is not followed.

    Raises:
        ResourceError: if it cannot be written.
    """
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o666), "ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}") from error


def refuse_replacing(path: str | Path) -> None:
    """Make sure that a result replaces nothing: what has its name may be somebody's only copy.

    Raises:
        ConfigError: if there is a file or a folder of this name.
    """
    if os.path.lexists(path):
        raise ConfigError(f"{path} is there already and would be replaced; remove it or name another place")


def prepare_output_dir(path: str | Path) -> Path:
    """Create a folder for results and make sure that it can be written to.

    Raises:
        ConfigError: if it cannot.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = temporary_path(path / "probe")
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"output_dir {path} cannot be written to: {error.strerror or error}") from None
    return path


def remove_leftovers(folder: Path) -> list[str]:
    """Delete half-written files of our own that no process is writing any more; return their names."""
    names = []
    for leftover in folder.iterdir():
        if _TEMPORARY.fullmatch(leftover.name) and _is_abandoned(leftover):
            leftover.unlink(missing_ok=True)
            names.append(leftover.name)
    return names


def _is_abandoned(path: Path) -> bool:
    """Return True for a regular file that nobody holds the lock of."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one run at a time; the lock goes with the process, however it ends, also if its children live on.

    Raises:
        ConfigError: if another process holds it, with its number; or if the file of this name is somebody else's.
    """
    path = folder / LOCK
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        reason = "it is a symbolic link" if path.is_symlink() else error.strerror or error
        raise ConfigError(f"{path} cannot be used as a lock: {reason}; choose another --output-dir") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path} is not a regular file; choose another --output-dir")
    with open(descriptor, "r+", errors="replace") as file:
        holder = file.read(32).strip()
        if holder and not holder.isdecimal():
            raise ConfigError(f"{path} is not a lock of this project; choose another --output-dir")
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
        os.register_at_fork(
            after_in_child=file.close
        )  # a loader's worker would hold the folder after a run that was killed
        try:
            yield
        finally:
            _held.discard(path.resolve())


_held: set[Path] = set()
"""Locks that this process holds."""


def is_in_use(folder: Path) -> bool:
    """Return whether another process holds a folder (`locked`)."""
    path = folder / LOCK
    if path.resolve() in _held:
        return False
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _size_of(write: Callable[[BinaryIO], object]) -> int:
    """Return how many bytes would be written, and write none."""
    counter = _Counter()
    write(counter)
    return counter.size


class _Counter(io.BytesIO):
    """A file to write to that knows its size alone: it keeps no content."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.position = 0

    def tell(self) -> int:
        """Return the place."""
        return self.position

    def write(self, block: ReadableBuffer, /) -> int:
        """Count a block."""
        length = memoryview(block).nbytes
        self.position += length
        self.size = max(self.size, self.position)
        return length

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place, as in any file."""
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name; it keeps the first all the while."""
    link = temporary_path(name)
    try:
        try:
            os.link(path, link)
        except OSError:  # a file system without links
            shutil.copyfile(path, link)
        os.replace(link, name)
    finally:
        link.unlink(missing_ok=True)  # still there if both names were the same file already


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
