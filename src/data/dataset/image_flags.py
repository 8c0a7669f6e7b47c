"""Flags of each image of a data set, in memory shared by all processes that load it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ...runtime.distributed import bits_over_ranks
from .picture import ImageFlag

MAX_WORKERS = 256
"""Number of workers of a loader whose current image is recorded."""


class ImageFlags:
    """The flags of each image in shared memory: workers set flags, the main process reports them.

    Also records the image that each worker decodes.
    """

    def __init__(self, count: int) -> None:
        """Create `count` images without flags."""
        self._flags = torch.zeros(count, dtype=torch.int32).share_memory_()
        self._reported = torch.zeros(count, dtype=torch.int32)
        self._image_of_worker = torch.full((MAX_WORKERS,), -1).share_memory_()

    def add(self, index: int, flags: ImageFlag) -> None:
        """Set flags of an image."""
        if flags:
            self._flags[index] |= int(flags)

    def begin(self, index: int) -> None:
        """Record, if called in a loader worker, the image that it is about to decode."""
        worker = get_worker_info()
        if worker is not None and worker.id < MAX_WORKERS:
            self._image_of_worker[worker.id] = index

    def last_started(self, worker: int) -> int | None:
        """Return the image that a worker started last, or None."""
        if worker >= MAX_WORKERS:
            return None
        index = int(self._image_of_worker[worker])
        return index if index >= 0 else None

    def forget_workers(self) -> None:
        """Clear the images of the workers, before new workers start."""
        self._image_of_worker.fill_(-1)

    def images(self, flag: ImageFlag) -> list[int]:
        """Return the images that have a flag, as far as this rank knows."""
        return _with_flag(self._flags, flag)

    def take_news(self, flag: ImageFlag) -> list[int]:
        """Return the images that have a flag and were not returned for it before."""
        news = self._flags & ~self._reported
        self._reported |= self._flags & int(flag)
        return _with_flag(news, flag)

    def join_ranks(self) -> None:
        """Merge the flags of all ranks; all ranks call this together, while no data is loaded."""
        self._flags.copy_(bits_over_ranks(self._flags))


def _with_flag(flags: Tensor, flag: ImageFlag) -> list[int]:
    return (flags & int(flag)).nonzero().flatten().tolist()
