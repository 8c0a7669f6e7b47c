"""Files that are whole or not there: written beside, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..core.errors import ConfigError, ResourceError

TEMPORARY = ".tmp"
"""Part of the name of every file that is being written."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk, a quota or a limit is reached."""


def write_atomically(
    path: str | Path, write: Callable[[BinaryIO], None], *, keep_previous: str | Path | None = None
) -> None:
    """Replace `path` by what `write` puts into a file; whatever happens, `path` holds the old content or the new.

    Args:
        path: the file.
        write: gets a file opened for binary writing.
        keep_previous: another name under which the old content stays.

    Raises:
        ResourceError: if the disk is full or a limit is reached, with what is needed and what is free.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}{TEMPORARY}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous is not None and path.exists():
            _keep(path, Path(keep_previous))
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        written = temporary.stat().st_size if temporary.exists() else 0
        temporary.unlink(missing_ok=True)
        if error.errno in DISK_FULL:
            free = shutil.disk_usage(path.parent).free
            raise ResourceError(
                f"disk full writing {path}: need {_size_of(write) / 1e6:.1f} MB, free {free / 1e6:.1f} MB, "
                f"{written / 1e6:.1f} MB written when it ended"
            ) from error
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically."""
    write_atomically(
        path, lambda file: file.write(json.dumps(content, indent=1, ensure_ascii=False).encode())
    )


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
        probe = path / f"probe{TEMPORARY}.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"output_dir {path} cannot be written to: {error.strerror or error}") from None
    return path


def remove_leftovers(folder: Path) -> list[str]:
    """Delete half-written files of runs that were killed; return their names."""
    names = []
    for leftover in folder.glob(f"*{TEMPORARY}.*"):
        leftover.unlink(missing_ok=True)
        names.append(leftover.name)
    return names


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one run at a time; the lock goes with the process, however it ends, also if its children go on for a while.

    Raises:
        ConfigError: if another process holds it, with its number.
    """
    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ConfigError(
                f"{folder} is in use by process {file.read().strip() or '?'}; choose another --output-dir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        os.register_at_fork(
            after_in_child=file.close
        )  # a loader's worker would hold the folder after a run that was killed
        yield


def _size_of(write: Callable[[BinaryIO], None]) -> int:
    """Return how many bytes would be written, and write none."""
    counter = _Counter()
    write(counter)
    return counter.size


class _Counter(io.RawIOBase):
    """A file to write to that knows its size alone."""

    size = position = 0

    def writable(self) -> bool:
        """Tell so."""
        return True

    def write(self, block: bytes) -> int:
        """Count a block."""
        length = memoryview(block).nbytes
        self.position += length
        self.size = max(self.size, self.position)
        return length

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place, as in any file."""
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name; it keeps the first all the while."""
    link = name.with_name(f"{name.name}{TEMPORARY}.{os.getpid()}")
    link.unlink(missing_ok=True)
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
