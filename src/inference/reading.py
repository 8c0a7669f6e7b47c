"""Reading of images in threads while a model computes, with a limit on the pixels in memory."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import RLock
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import ConfigError
from ..data.dataset.decoding import (
    ImageError,
    inspect_image,
    inspect_pil,
)
from ..data.dataset.picture import FLAG_TEXTS, MAX_SIDE, ImageFlag
from ..runtime.log import logger

READING_THREADS = 4
"""Threads that read images while the model computes."""

MAX_PIXELS_AT_ONCE = 64_000_000
"""Maximum number of pixels of the images that all calls in a process decode ahead; 3 bytes each once decoded.

The images of one batch have the same limit, so large images are computed in smaller batches. An image beyond
the limit is decoded alone, when its turn comes.
"""


class LabelledFile(NamedTuple):
    """An image file with the image size that its labels refer to.

    A rotation in the file's EXIF data is applied only if the image then has this size.
    """

    path: Path
    size: tuple[int, int]
    """(width, height)."""


Readable = str | Path | Image.Image | np.ndarray | Tensor | LabelledFile
"""An image: a file; a PIL image; an array `[H, W, 3]` (RGB) or `[H, W]` (grey), uint8; or a tensor `[3, H,
W]`, uint8, RGB."""


class ReadImage(NamedTuple):
    """An image, or the error that reading it gave."""

    image: Tensor
    """`[3, H, W]` uint8, RGB; without pixels if there is an error."""
    source: str | None
    """Path of the image file; None if the image did not come from a file."""
    pixels: int
    """Number of pixels that were decoded; 0 for arrays and tensors."""
    error: Exception | None = None
    """Why the image cannot be used: an `ImageError`, a `ConfigError` or a `MemoryError`."""


class PixelBudget:
    """Number of pixels that may be in memory at once. Nobody waits for room: `take` returns at once.

    Example:
        >>> budget = PixelBudget(1_000_000)
        >>> budget.take(640 * 480), budget.take(1920 * 1080)
        (True, False)
    """

    def __init__(self, limit: int) -> None:
        """Store the limit."""
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Free all room, as in a forked process, which has no threads that read images."""
        self._lock = (
            RLock()
        )  # garbage collection inside `take` can call `release`
        self._held = 0

    def take(self, pixels: int) -> bool:
        """Return whether there is room for an image; if so, it is occupied until `release`."""
        with self._lock:
            if self._held + pixels > self.limit:
                return False
            self._held += pixels
            return True

    def release(self, pixels: int) -> None:
        """Free the room of an image."""
        with self._lock:
            self._held -= pixels


_BUDGET = PixelBudget(MAX_PIXELS_AT_ONCE)
"""Pixels that the reading threads of this process hold."""

os.register_at_fork(after_in_child=_BUDGET.clear)


class _NoRoom(BaseException):
    """There is no room for the pixels of an image; not an `Exception`, which would mean a damaged image."""


class _AheadReader:
    """Reads an image in a thread if there is room for its pixels."""

    def __init__(self, budget: PixelBudget, bit_depth: int | None) -> None:
        self.budget = budget
        self.bit_depth = bit_depth
        self.held = 0

    def read(self, image: Readable) -> ReadImage | None:
        """Return the image and keep its room; None, and no room, if there is not enough."""
        try:
            found = _read(image, self._take, self.bit_depth)
        except _NoRoom:
            found = None
        except BaseException:
            self.release()
            raise
        if found is None or found.error is not None:
            self.release()
        return found

    def release(self) -> None:
        """Free the room."""
        self.budget.release(self.held)
        self.held = 0

    def abandon(self, _: Future[ReadImage | None]) -> None:
        """Free the room of an image that nobody will use."""
        self.release()

    def _take(self, pixels: int) -> None:
        if self.held:  # a second decoder tries the same image
            return
        if not self.budget.take(pixels):
            raise _NoRoom
        self.held = pixels


class _Task(NamedTuple):
    """An image that a thread reads."""

    image: Readable
    reader: _AheadReader
    future: Future[ReadImage | None]


def read_ahead(
    images: Iterable[Readable],
    *,
    ahead: int,
    budget: PixelBudget = _BUDGET,
    bit_depth: int | None = None,
) -> Iterator[ReadImage]:
    """Read images in threads, up to `ahead` at a time, and yield them in order.

    An image that cannot be read is yielded with its error. An error of `images` itself is raised after the
    images before it.

    Args:
        images: any number of images.
        ahead: maximum number of images that are being read or wait to be yielded.
        budget: room for their pixels; an image without room is read when its turn comes.
        bit_depth: as for `read_image`.

    Example:
        >>> for image in read_ahead(["image.jpg", "missing.jpg"], ahead=8):
        ...     print(image.source, list(image.image.shape), type(image.error).__name__)
        image.jpg [3, 64, 64] NoneType
        missing.jpg [3, 0, 0] ImageError
    """
    source = iter(images)
    tasks: deque[_Task] = deque()
    fault: Exception | None = None
    is_over = False
    readers = ThreadPoolExecutor(READING_THREADS)

    def submitted(image: Readable) -> _Task:
        reader = _AheadReader(budget, bit_depth)
        return _Task(image, reader, readers.submit(reader.read, image))

    try:
        while True:
            while not is_over and len(tasks) < ahead:
                try:
                    tasks.append(submitted(next(source)))
                except StopIteration:
                    is_over = True
                except Exception as error:
                    fault = error
                    is_over = True
            if not tasks:
                break
            first = tasks.popleft()
            image = first.future.result()
            first.reader.release()
            for number, task in enumerate(tasks):
                if _had_no_room(task.future):
                    tasks[number] = submitted(task.image)
                    break
            if image is None:  # there was no room, and now it is the next one
                image = _read(first.image, bit_depth=bit_depth)
            del first  # only the caller keeps the image from here on
            yield image
            del image
    finally:
        # The garbage collector can run this in the middle of the start of a thread, where joining a thread
        # would wait forever, so the threads end by themselves.
        readers.shutdown(wait=False, cancel_futures=True)
        for task in tasks:
            task.future.add_done_callback(task.reader.abandon)
    if fault is not None:
        raise fault


def _had_no_room(future: Future[ReadImage | None]) -> bool:
    """Return whether a thread could not read an image for want of room."""
    return (
        future.done() and future.exception() is None and future.result() is None
    )


def batches(
    images: Iterator[ReadImage], size: int
) -> Iterator[list[ReadImage]]:
    """Yield lists of up to `size` images that have at most `MAX_PIXELS_AT_ONCE` pixels together.

    An error of `images` is raised after the images before it.

    Example:
        >>> files = sorted(Path("images").iterdir())
        >>> [len(batch) for batch in batches(read_ahead(files, ahead=4), size=3)]
        [3, 3, 2]
    """
    batch: list[ReadImage] = []
    pixels = 0
    fault: Exception | None = None
    while True:
        try:
            image = next(images)
        except StopIteration:
            break
        except Exception as error:
            fault = error
            break
        if batch and pixels + image.pixels > MAX_PIXELS_AT_ONCE:
            yield batch
            batch = []
            pixels = 0
        batch.append(image)
        pixels += image.pixels
        del image  # only the caller keeps the images of a batch
        if len(batch) == size or pixels >= MAX_PIXELS_AT_ONCE:
            yield batch
            batch = []
            pixels = 0
    if batch:
        yield batch
    if fault is not None:
        raise fault


def _read(
    image: Readable,
    before_decoding: Callable[[int], None] = lambda _: None,
    bit_depth: int | None = None,
) -> ReadImage:
    """Return an image, or the error that concerns this image alone."""
    decoded = 0

    def count(pixels: int) -> None:
        nonlocal decoded
        before_decoding(pixels)
        decoded = pixels

    try:
        pixels, source = read_image(image, count, bit_depth=bit_depth)
    except (ImageError, ConfigError, MemoryError) as error:
        nothing = torch.zeros(3, 0, 0, dtype=torch.uint8)
        return ReadImage(nothing, _source_of(image), 0, error)
    return ReadImage(pixels, source, decoded)


_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)

_WARNED: set[tuple[Path, ImageFlag]] = set()
"""Folders and flags that a warning was logged about."""


def _warn_once(path: Path, flags: ImageFlag) -> None:
    """Warn, once for each folder, about properties of its image files that can be mistakes."""
    for flag in (
        ImageFlag.SEVERAL_FRAMES,
        ImageFlag.EXTRA_BANDS,
        ImageFlag.TWO_ORIENTATIONS,
        ImageFlag.LOW_RANGE,
    ):
        if flag in flags and (path.parent, flag) not in _WARNED:
            _WARNED.add((path.parent, flag))
            logger.warning(
                "%s has %s (first: %s)",
                path.parent,
                FLAG_TEXTS[flag],
                path.name or "an image without a file name",
            )


def read_image(
    image: Readable,
    before_decoding: Callable[[int], None] = lambda _: None,
    *,
    bit_depth: int | None = None,
) -> tuple[Tensor, str | None]:
    """Return an image as `[3, H, W]` uint8, RGB, and its file name if it came from a file.

    Args:
        image: image to read.
        before_decoding: as for `inspect_image`; arrays and tensors are already in memory and do not call it.
        bit_depth: number of bits that the samples of 16-bit images use; None means 16.

    Example:
        >>> pixels, source = read_image("image.jpg")
        >>> pixels.shape, source
        (torch.Size([3, 64, 64]), 'image.jpg')

    Raises:
        ImageError: if a file cannot be read.
        ConfigError: if it is a URL, is not an image, or is an array with a wrong shape or type, or too long.
    """
    if isinstance(image, str) and _URL.match(image):
        raise ConfigError(
            f"{image} is a URL; download the file first, and give its local path"
        )
    if isinstance(image, LabelledFile | str | Path):
        pixels = _read_file(image, before_decoding, bit_depth)
        return pixels, _source_of(image)
    if isinstance(image, Image.Image):
        before_decoding(image.width * image.height)
        source = _source_of(image)
        pixels, flags = inspect_pil(image, bit_depth=bit_depth)
        _warn_once(Path(source or ""), flags)
        return pixels, source
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ConfigError(
            f"a {type(image).__name__} is not an image; pass a file, a PIL image, an array [H, W, 3] or a "
            "tensor [3, H, W]"
        )
    if isinstance(image, Tensor):
        shape = tuple(image.shape)
        is_usable = image.dtype == torch.uint8 and _has_values(image)
        expected = "[3, H, W] uint8"
    else:
        shape = _shape_as_tensor(image)
        is_usable = image.dtype == np.uint8
        expected = "[H, W, 3] (RGB) or [H, W] (grey), uint8"
    has_shape = len(shape) == 3 and shape[0] == 3 and 0 not in shape
    if not is_usable or not has_shape:
        raise ConfigError(
            f"an image of shape {list(image.shape)} and type {image.dtype} was given, expected {expected}"
        )
    if max(shape) > MAX_SIDE:
        raise ConfigError(
            f"an image of shape {list(image.shape)} was given, but a side has at most {MAX_SIDE} pixels"
        )
    pixels = image if isinstance(image, Tensor) else _channels_first(image)
    return pixels.cpu(), None


def _has_values(image: Tensor) -> bool:
    """Return whether a tensor is dense and has data."""
    return image.layout == torch.strided and not image.is_meta


def _shape_as_tensor(image: np.ndarray) -> tuple[int, ...]:
    """Return the shape that `_channels_first` gives to an array."""
    shape = image.shape
    if len(shape) == 2:
        return (3, *shape)
    return (*shape[2:], *shape[:2])


def _source_of(image: object) -> str | None:
    """Return the path of the file that an image is read from; None if there is none."""
    if isinstance(image, LabelledFile):
        return str(image.path)
    if isinstance(image, str | Path):
        return str(image)
    if isinstance(image, Image.Image):
        return getattr(image, "filename", None) or None
    return None


def _read_file(
    file: str | Path | LabelledFile,
    before_decoding: Callable[[int], None],
    bit_depth: int | None,
) -> Tensor:
    """Read an image file; warn about properties that can be mistakes."""
    size = file.size if isinstance(file, LabelledFile) else None
    path = file.path if isinstance(file, LabelledFile) else Path(file)
    pixels, flags = inspect_image(
        path, size, before_decoding=before_decoding, bit_depth=bit_depth
    )
    _warn_once(path, flags)
    return pixels


def _channels_first(image: np.ndarray) -> Tensor:
    """Return an array `[H, W, 3]` or `[H, W]` as a tensor `[3, H, W]`."""
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    if pixels.ndim == 2:
        pixels = pixels[..., None].expand(-1, -1, 3)
    return pixels.permute(2, 0, 1)
