"""Caches of decoded images, in memory or on a disk, for data sets that are decoded again in every epoch.

An entry holds exactly the pixels that decoding gave, with the identity of the file, so a run with a cache is
equal to one without. A full cache keeps its entries and takes no more: in a random order that differs between
epochs, replacing entries would not raise the number of hits.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ...core.errors import ConfigError, ResourceError
from ...core.paths import open_regular, user_path
from ...runtime.files import remove_leftovers, write_atomically
from ...runtime.log import logger
from ..transforms.pixels import REDUCTIONS, Pixels
from .picture import ImageFlag

GIGABYTE = 1_000_000_000

DEFAULT_GIGABYTES = 8.0
"""Maximum size of a cache if it is not set."""

LARGEST_GIGABYTES = 1_000_000
"""Maximum of the setting: far more than any machine has, and few enough for a file's length."""

MEMORY = "memory"
"""Setting for a cache in memory, where a folder could stand."""


class Key(NamedTuple):
    """The image of an entry."""

    position: int
    """Position in the data set."""
    path: str
    expected_wh: tuple[int, int]
    """(width, height) of the labels, which decide about the rotation."""
    bit_depth: int | None
    reduction: int
    """Reduction that was asked for; an image that cannot be reduced has another one."""


class Entry(NamedTuple):
    """A decoded image."""

    pixels: Pixels
    flags: ImageFlag


class ImageCache(Protocol):
    """A cache of decoded images, which all workers of a loader use."""

    def get(self, key: Key, status: os.stat_result) -> Entry | None:
        """Return an image, or None if it is not cached, or if its file has changed since.

        Args:
            key: image.
            status: status of its file now.
        """

    def put(self, key: Key, status: os.stat_result, entry: Entry) -> None:
        """Add an image if there is room; a failure is logged and never ends the run.

        Args:
            key: image.
            status: status of its file before it was read.
            entry: decoded image.
        """


def open_cache(
    place: str | None, gigabytes: float | None, images: int
) -> ImageCache | None:
    """Return the cache that the settings of a data set describe, or None.

    Args:
        place: "memory", a folder, or None for no cache.
        gigabytes: maximum size; in memory, for each rank. None means `DEFAULT_GIGABYTES`.
        images: number of images of the data set.

    Raises:
        ConfigError: if a setting is invalid or the folder cannot be used.
    """
    if gigabytes is not None and not 0 < gigabytes <= LARGEST_GIGABYTES:
        raise ConfigError(
            f"CocoDetection.image_cache_gb is {gigabytes}, expected a number above 0, and at most "
            f"{LARGEST_GIGABYTES:,}"
        )
    if place is None:
        if gigabytes is not None:
            raise ConfigError(
                "CocoDetection.image_cache_gb is set without image_cache; set image_cache to 'memory' or to "
                "a folder"
            )
        return None
    if not place:
        raise ConfigError(
            "CocoDetection.image_cache is empty, expected 'memory', a folder, or null for no cache"
        )
    limit = int((gigabytes or DEFAULT_GIGABYTES) * GIGABYTE)
    if place == MEMORY:
        return MemoryCache(images, limit)
    return DiskCache(user_path(place), limit)


# ---- the form of an entry, the same in both caches ----

_FORM = struct.Struct("<qqqqqqqqdd")
"""Length, modification time and change time of the file; height and width of the image; whether the channels
of a pixel are next to each other; reduction; flags; origin (x, y).
"""


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """Return what changes when a file is written, replaced, or written with its old time."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _packed(status: os.stat_result, entry: Entry) -> tuple[bytes, np.ndarray]:
    """Return the head of an entry, and its pixels as bytes `[n]` uint8."""
    image, reduction, origin = entry.pixels
    by_pixel = image.permute(1, 2, 0)
    is_by_pixel = by_pixel.is_contiguous()
    ordered = by_pixel if is_by_pixel else image.contiguous()
    height, width = image.shape[1:]
    head = _FORM.pack(
        *_identity(status),
        height,
        width,
        int(is_by_pixel),
        reduction,
        int(entry.flags),
        *origin,
    )
    return head, ordered.numpy().reshape(-1)


def _unpacked(
    head: bytes, status: os.stat_result, content: np.ndarray
) -> Entry | None:
    """Return the entry, whose pixels begin at `content[0]`; None if the file has another identity."""
    values = _FORM.unpack(head)
    if values[:3] != _identity(status):
        return None
    height, width, is_by_pixel, reduction, flags = map(int, values[3:8])
    flat = torch.from_numpy(content[: 3 * height * width])
    image = _shaped(flat, height, width, bool(is_by_pixel))
    pixels = Pixels(image, reduction, (values[8], values[9]))
    return Entry(pixels, ImageFlag(flags))


def _shaped(flat: Tensor, height: int, width: int, is_by_pixel: bool) -> Tensor:
    """Return `[3, height, width]` in the order in which decoding left the bytes."""
    if is_by_pixel:
        return flat.view(height, width, 3).permute(2, 0, 1)
    return flat.view(3, height, width)


# ---- on a disk ----

_MAGIC = b"dfine image 1\n"
_ENTRY = re.compile("[0-9a-f]{40}")
"""Pattern of the names of entries."""

_UNIT = 1 << 16
"""Bytes for which the file `used` grows by one byte."""


class DiskCache:
    """Decoded images as files of a folder, which several workers, ranks and runs may share.

    Each file is written under a temporary name and renamed, so a process that is killed leaves no incomplete
    entry; it also has a checksum. The folder may be deleted at any time. If it has other files, they stay as
    they are.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Create the folder, and delete what killed processes left and what exceeds the limit.

        Args:
            folder: folder of the cache.
            limit: maximum size in bytes.

        Raises:
            ConfigError: if the folder cannot be used.
        """
        self.folder = folder.absolute()
        self.limit = limit
        self._takes_more = True
        self._version = _version()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            used = self._clean()
            write_atomically(
                self._used_file,
                lambda file: file.write(b"\0" * _units(used)),
            )
        except (OSError, ResourceError) as error:
            raise ConfigError(
                f"CocoDetection.image_cache {folder} cannot be used: {error}; give a folder that can be "
                "written, or 'memory'"
            ) from None

    @property
    def _used_file(self) -> Path:
        """File whose length counts the bytes of all entries; each process that adds one appends to it."""
        return self.folder / "used"

    def get(self, key: Key, status: os.stat_result) -> Entry | None:
        """Return an image (`ImageCache.get`)."""
        try:
            with open_regular(self._file(key)) as file:
                raw = np.fromfile(file, np.uint8)
        except OSError:
            return None
        start = len(_MAGIC) + 4
        body = raw[start:]
        if raw[: len(_MAGIC)].tobytes() != _MAGIC or len(body) < _FORM.size:
            return None
        checksum = int.from_bytes(raw[len(_MAGIC) : start].tobytes(), "little")
        if zlib.crc32(body.data) != checksum:
            return None
        head = body[: _FORM.size].tobytes()
        return _unpacked(head, status, body[_FORM.size :])

    def put(self, key: Key, status: os.stat_result, entry: Entry) -> None:
        """Add an image (`ImageCache.put`)."""
        if not self._takes_more:
            return
        head, content = _packed(status, entry)
        body = head + content.tobytes()
        checksum = zlib.crc32(body).to_bytes(4, "little")
        path = self._file(key)
        try:
            if not self._reserve(len(body)):
                self._takes_more = False
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(
                path, lambda file: file.write(_MAGIC + checksum + body)
            )
        except (OSError, ResourceError) as error:
            self._takes_more = False
            logger.warning(
                "the image cache %s takes no more images, which are decoded instead: %s",
                self.folder,
                error,
            )

    def _file(self, key: Key) -> Path:
        values = (
            self._version,
            os.path.abspath(key.path),
            *key.expected_wh,
            key.bit_depth,
            key.reduction,
        )
        text = "\n".join(map(str, values))
        name = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
        return self.folder / name[:2] / name[2:42]

    def _reserve(self, size: int) -> bool:
        """Count an entry; return False if there is no room for it."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        file = os.open(self._used_file, flags, 0o666)
        try:
            units = _units(size)
            if (os.fstat(file).st_size + units) * _UNIT > self.limit:
                return False
            os.write(file, b"\0" * units)
        finally:
            os.close(file)
        return True

    def _refuse_foreign(self) -> None:
        """Check that the file `used`, which is replaced, belongs to a cache.

        Raises:
            ConfigError: if it does not.
        """
        path = self._used_file
        try:
            with open_regular(path) as file:
                is_ours = not file.read().strip(b"\0")
        except FileNotFoundError:
            return
        if not is_ours:
            raise ConfigError(
                f"CocoDetection.image_cache {self.folder} has a file {path.name} that does not belong to an "
                "image cache; give a new or an empty folder"
            )

    def _clean(self) -> int:
        """Delete leftovers, and the oldest entries above the limit; return the bytes that remain."""
        entries = []
        remove_leftovers(self.folder)
        for folder in self._folders():
            with suppress(OSError):
                remove_leftovers(folder)
                for file in os.scandir(folder):
                    if not _ENTRY.fullmatch(file.name):
                        continue
                    status = file.stat(follow_symlinks=False)
                    entries.append(
                        (status.st_mtime_ns, status.st_size, file.path)
                    )
        used = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if used <= self.limit:
                break
            with suppress(OSError):
                if _is_entry(path):
                    os.unlink(path)
                    used -= size
        return used

    def _folders(self) -> Iterator[Path]:
        """Yield the folders of entries, which have names of two hexadecimal digits."""
        for number in range(256):
            folder = self.folder / f"{number:02x}"
            if folder.is_dir() and not folder.is_symlink():
                yield folder


def _is_entry(path: str) -> bool:
    """Return whether a file begins like an entry, or is empty, as after a power failure."""
    with open_regular(path) as file:
        return file.read(len(_MAGIC)) in (_MAGIC, b"")


def _units(size: int) -> int:
    return -(-size // _UNIT)


def _version() -> str:
    """Return the versions of the decoders: another one may decode to slightly different pixels."""
    versions = []
    for name in ("pillow", "torchvision"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return ", ".join(versions)


# ---- in memory ----

_PLACE = struct.Struct("<q")
_ROW = _PLACE.size + _FORM.size
_ALIGNMENT = 64


class MemoryCache:
    """Decoded images in memory that the workers of a loader share.

    The memory belongs to an unnamed file, which disappears with the last process, even if all are killed. It
    begins with the position of the first free byte and a row for each image and reduction: the position of
    its pixels, 0 if there are none, and the head of the entry. Rows and positions are read and changed under
    a lock that ends with its process. Pages are allocated when they are first written.
    """

    def __init__(self, images: int, limit: int) -> None:
        """Reserve addresses; memory is used as images are added.

        Args:
            images: number of images.
            limit: maximum size of the pixels in bytes.

        Raises:
            ConfigError: if the system does not reserve as many.
        """
        self.images = images
        self.limit = limit
        self._file = _unnamed_file()
        begin = self._aligned(_PLACE.size + images * self._rows_each * _ROW)
        self._size = begin + limit
        try:
            os.ftruncate(self._file, self._size)
            self._memory = mmap.mmap(self._file, self._size)
        except OSError as error:
            os.close(self._file)
            raise ConfigError(
                f"an image cache of {limit / GIGABYTE:g} GB in memory cannot be reserved: "
                f"{error.strerror or error}; set CocoDetection.image_cache_gb to less"
            ) from None
        self._memory[: _PLACE.size] = _PLACE.pack(begin)

    @property
    def _rows_each(self) -> int:
        return len(REDUCTIONS) + 1

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker that is started with a new interpreter."""
        return {
            "images": self.images,
            "limit": self.limit,
            "size": self._size,
            "file": DupFd(self._file),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.images = state["images"]
        self.limit = state["limit"]
        self._size = state["size"]
        self._file = state["file"].detach()
        self._memory = mmap.mmap(self._file, self._size)

    def get(self, key: Key, status: os.stat_result) -> Entry | None:
        """Return an image (`ImageCache.get`)."""
        row = self._row(key)
        with self._locked():
            place, head = self._read_row(row)
        if not place:
            return None
        stored = np.frombuffer(self._memory, np.uint8, offset=place)
        entry = _unpacked(head, status, stored)
        if entry is None:
            return None
        image = entry.pixels.image.clone(memory_format=torch.preserve_format)
        return Entry(entry.pixels._replace(image=image), entry.flags)

    def put(self, key: Key, status: os.stat_result, entry: Entry) -> None:
        """Add an image (`ImageCache.put`)."""
        head, content = _packed(status, entry)
        with self._locked():
            (place,) = _PLACE.unpack(self._memory[: _PLACE.size])
            end = self._aligned(place + len(content))
            if end > self._size:
                return
            self._memory[: _PLACE.size] = _PLACE.pack(end)
        self._memory[place : place + len(content)] = content.tobytes()
        row = self._row(key)
        with self._locked():
            self._memory[row : row + _ROW] = _PLACE.pack(place) + head

    def _row(self, key: Key) -> int:
        """Return the position of the row of an image."""
        number = 0
        if key.reduction in REDUCTIONS:
            number = 1 + REDUCTIONS.index(key.reduction)
        return _PLACE.size + (key.position * self._rows_each + number) * _ROW

    def _read_row(self, row: int) -> tuple[int, bytes]:
        raw = self._memory[row : row + _ROW]
        (place,) = _PLACE.unpack(raw[: _PLACE.size])
        return place, raw[_PLACE.size :]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    @staticmethod
    def _aligned(place: int) -> int:
        return -(-place // _ALIGNMENT) * _ALIGNMENT


def _unnamed_file() -> int:
    """Return a descriptor of an empty file without a name, in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("images")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
