"""Folders that keep converted labels: inside the data set, or in the user's cache if that is not writable.

A folder holds `train.json`, `val.json` and `state.json`. The state has a digest over everything that the
labels are made from: relative name, size in bytes and modification time of each label file, image and list,
together with the options of the conversion and `VERSION`. If the digest is the same, the labels are used
again; contents of files are not compared. Copying a data set without its times therefore repeats the
conversion.

Processes that need the same labels at the same time, such as the ranks of a run, wait for each other by a
lock: the first one converts. Each file is replaced atomically, and the state is written last.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from ...core.errors import ConfigError, DataError
from ...core.paths import open_regular, user_cache
from ...runtime.files import prepare_output_dir, write_atomically

NAME = ".dfine_cache"
"""Name of the folder inside a data set."""

VERSION = "1"
"""Part of the digest; it changes with the meaning of the output."""

STATE = "state.json"


def cache_folder(root: Path, key: str, given: Path | None = None) -> Path:
    """Return a writable folder for the converted labels of a data set, and create it.

    Args:
        root: folder of the data set.
        key: text that differs for other options, so that their labels do not replace each other.
        given: folder to use instead.

    Raises:
        ConfigError: if no folder can be written to.
    """
    name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:12]
    if given is not None:
        return prepare_output_dir(given / name)
    own = root / NAME
    if not own.is_symlink():
        with suppress(ConfigError):
            return prepare_output_dir(own / name)
    place = os.fsencode(os.path.abspath(root))
    of_root = hashlib.sha256(place).hexdigest()[:12]
    return prepare_output_dir(user_cache() / of_root / name)


def digest_of(paths: Iterable[Path], root: Path, options: str) -> str:
    """Return a digest over names, sizes and modification times of files, and over options.

    Raises:
        DataError: if a file cannot be examined for another reason than that it does not exist.
    """
    sha256 = hashlib.sha256(f"{VERSION}\0{options}".encode())
    for path in paths:
        try:
            status = path.stat()
            facts = f"{status.st_size} {status.st_mtime_ns}"
        except FileNotFoundError:
            facts = "missing"
        except OSError as error:
            raise DataError(
                f"{path} cannot be examined: {error.strerror or error}"
            ) from None
        name = os.fsencode(os.path.relpath(path, root))
        sha256.update(name + f"\0{facts}\n".encode())
    return sha256.hexdigest()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, and wait for it as long as another process holds it.

    On file systems without locks nothing is held: processes then write the same files one after the other.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(folder / "lock", flags, 0o666)
    except OSError as error:
        raise ConfigError(
            f"{folder / 'lock'} cannot be opened: {error.strerror or error}"
        ) from None
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class State(msgspec.Struct):
    """The content of `state.json`."""

    digest: str
    files: dict[str, int]
    """Sizes of the files of labels in bytes, by name."""
    images: str
    """Folder that the file names in the labels are relative to."""
    class_names: list[str]
    remarks: list[str]
    warnings: list[str]
    was_split: bool
    """Whether the images for validation were split off."""


def read_state(folder: Path, digest: str) -> State | None:
    """Return the state of a folder, or None if its labels are missing or were made from something else."""
    try:
        with open_regular(folder / STATE) as file:
            state = msgspec.json.decode(file.read(), type=State)
        if state.digest != digest:
            return None
        for name, size in state.files.items():
            if (folder / name).stat().st_size != size:
                return None
    except (OSError, ValueError, RecursionError):
        return None
    return state


def write_state(folder: Path, state: State) -> None:
    """Write the state; the files of labels must have been written before."""
    content = msgspec.json.format(msgspec.json.encode(state), indent=1)
    write_atomically(folder / STATE, lambda file: file.write(content))
