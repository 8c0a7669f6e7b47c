"""What was noticed about each image of a data set, in memory that all processes which load it share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ...runtime.distributed import bits_over_ranks
from .decoding import Mark

MOST_WORKERS = 256
"""Of a loader, of which it is known what they do."""


class ImageFlags:
    """A byte an image: loading processes add marks to it, the main process tells of them. And which image each is at."""

    def __init__(self, count: int) -> None:
        """Begin with no marks on `count` images."""
        self._marks = torch.zeros(count, dtype=torch.uint8).share_memory_()
        self._at = torch.full((MOST_WORKERS,), -1).share_memory_()
        self._told = torch.zeros(count, dtype=torch.uint8)

    def add(self, index: int, marks: Mark) -> None:
        """Mark an image."""
        if marks:
            self._marks[index] |= int(marks)

    def begin(self, index: int) -> None:
        """Note, if this is a worker of a loader, which image it is about to decode."""
        worker = get_worker_info()
        if worker is not None and worker.id < MOST_WORKERS:
            self._at[worker.id] = index

    def last_begun(self, worker: int) -> int | None:
        """Return the image that a worker began with last."""
        index = int(self._at[worker]) if worker < MOST_WORKERS else -1
        return index if index >= 0 else None

    def forget_workers(self) -> None:
        """Others will work from now on."""
        self._at.fill_(-1)

    def images(self, mark: Mark) -> list[int]:
        """Return the images that bear a mark, as far as this rank knows."""
        return _bearing(self._marks, mark)

    def take_news(self, mark: Mark) -> list[int]:
        """Return the images with a mark that have not been asked for before."""
        news = self._marks & ~self._told
        self._told |= self._marks & int(mark)
        return _bearing(news, mark)

    def join_ranks(self) -> None:
        """Take over the marks of all ranks; all call this together, while nothing is loaded."""
        self._marks.copy_(bits_over_ranks(self._marks))


def _bearing(marks: Tensor, mark: Mark) -> list[int]:
    return (marks & int(mark)).nonzero().flatten().tolist()
