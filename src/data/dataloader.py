"""Data loading over all ranks: the images that each rank gets, and their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Literal, cast

import torch
from torch.utils import data

from ..core.contracts import Batch
from ..core.counts import counted
from ..core.detection_data import DetectionData, require_detection_data
from ..core.errors import ConfigError
from ..core.loader_contracts import Collate, FollowsEpochs
from ..core.registry import register
from ..runtime.distributed import rank, uses_cuda, world_size
from ..runtime.memory import keep_freed_memory
from .collate import BatchImageCollateFunction
from .worker_watch import (
    POLL_SECONDS,
    WorkerBatches,
    end_if_not_handed_over,
    watched,
)


class GlobalBatchSampler(data.Sampler[list[int]]):
    """Split one permutation of the data into global batches and yield the part of this rank.

    The permutation is derived from (seed, epoch), so a global batch holds the same images for any number of
    ranks. Without `equal_shares`, for evaluation, every image is used exactly once, and ranks may have
    different numbers of batches. With it, for training, a few images are used twice so that all ranks take
    the same number of steps.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool,
    ) -> None:
        """Store the settings; `batch_size` is the number of images per rank."""
        self.length = length
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank = rank()
        self.world_size = world_size()
        self.seed = 0
        self.epoch = 0
        self.start = 0
        self.equal_shares = shuffle

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch of this rank, beginning with batch `start`."""
        order = self._order()
        step = self.batch_size * self.world_size
        for number in range(self.start, len(self)):
            begin = number * step
            global_batch = order[begin : begin + step]
            per_rank = -(-len(global_batch) // self.world_size)
            first = self.rank * per_rank
            indices = global_batch[first : first + per_rank]
            if indices:
                yield indices

    def __len__(self) -> int:
        """Return the number of global batches in an epoch."""
        step = self.batch_size * self.world_size
        if self.drop_last:
            return self.length // step
        return -(-self.length // step)

    def _order(self) -> list[int]:
        if self.shuffle:
            seed = (self.seed * 1_000_003 + self.epoch) % (1 << 63)
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            order = list(range(self.length))
        if self.equal_shares and not self.drop_last:
            padding = -self.length % self.world_size
            order = list(islice(cycle(order), self.length + padding))
        return order


@register()
class DataLoader(data.DataLoader):
    """A `torch.utils.data.DataLoader` with a `GlobalBatchSampler`."""

    __inject__ = ["dataset", "collate_fn"]
    dataset: DetectionData
    collate_fn: Collate
    batch_sampler: GlobalBatchSampler

    def __init__(
        self,
        dataset: DetectionData,
        collate_fn: Collate | None = None,
        batch_size: int | None = None,
        total_batch_size: int | Literal["auto"] | None = None,
        shuffle: bool = False,
        num_workers: int = 0,
        drop_last: bool = False,
        pin_memory: bool | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        data_timeout: float = 300.0,
    ) -> None:
        """Build the loader for this rank.

        Args:
            dataset: data set to load.
            collate_fn: function that turns a list of items into a batch; None uses
                `BatchImageCollateFunction`.
            batch_size: images per rank. Set this or `total_batch_size`.
            total_batch_size: images over all ranks. A loader for "auto" has one image per rank until the
                training sets `batch_sampler.batch_size` (`solver/automatic_batch.py`).
            shuffle: use a new random order in every epoch.
            num_workers: number of worker processes.
            drop_last: drop the last batch if it is incomplete.
            pin_memory: None pins memory if this process computes on a GPU.
            prefetch_factor: batches that each worker prepares in advance.
            persistent_workers: not supported, because workers would not see a new epoch.
            data_timeout: maximum time to wait for a batch from the workers, in seconds; 0 means no limit.

        Raises:
            ConfigError: if the batch size does not fit the ranks or the data, or if the data set lacks a
                member.
        """
        require_detection_data(dataset)
        ranks = world_size()
        images = _images_per_rank(batch_size, total_batch_size, ranks)
        if images < 1 or num_workers < 0:
            raise ConfigError(
                f"DataLoader: batch_size is {images}, expected at least 1; "
                f"num_workers is {num_workers}, expected at least 0"
            )
        if data_timeout < 0:
            raise ConfigError(
                f"DataLoader.data_timeout is {data_timeout}, expected seconds, or 0 for no limit"
            )
        if persistent_workers:
            raise ConfigError(
                "DataLoader.persistent_workers is true, which is not supported: "
                "workers are restarted every epoch; set it to false"
            )
        if drop_last and images * ranks > len(dataset):
            raise ConfigError(
                f"0 steps per epoch: {counted(len(dataset), 'image')} cannot fill one batch of "
                f"{images * ranks}; reduce total_batch_size"
            )
        if pin_memory is None:
            pin_memory = uses_cuda()
        keep_freed_memory()
        self.shuffle = shuffle
        self.data_timeout = data_timeout
        sampler = GlobalBatchSampler(
            len(dataset),
            images,
            shuffle=shuffle,
            drop_last=drop_last,
        )
        poll_seconds = min(POLL_SECONDS, data_timeout or POLL_SECONDS)
        super().__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate_fn or BatchImageCollateFunction(),
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            worker_init_fn=end_if_not_handed_over if num_workers else None,
            timeout=poll_seconds if num_workers else 0,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch declares its own iterator class
        """Yield the batches of this rank.

        Raises:
            ResourceError: if a worker dies or hangs.
        """
        if self.num_workers:
            start = cast(Callable[[], WorkerBatches], super().__iter__)
            return watched(start, self.data_timeout, self._last_image)
        return super().__iter__()

    def _last_image(self, worker: int) -> str:
        return self.dataset.last_image(worker)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the data set, the collate function and the sampler.

        The sampler begins with batch `start`.
        """
        self.batch_sampler.epoch = epoch
        self.batch_sampler.start = start
        self.dataset.set_epoch(epoch)
        if isinstance(self.collate_fn, FollowsEpochs):
            self.collate_fn.set_epoch(epoch)

    def report_images(self) -> None:
        """Log what the data set found out about its images; all ranks call this together after an epoch."""
        self.dataset.report_images()

    def set_seed(self, seed: int) -> None:
        """Set the random seed of the data set and the sampler."""
        self.batch_sampler.seed = seed
        self.dataset.seed = seed

    @property
    def total_batch_size(self) -> int:
        """Images per step over all ranks."""
        return self.batch_sampler.batch_size * self.batch_sampler.world_size


def _images_per_rank(
    batch_size: int | None,
    total_batch_size: int | Literal["auto"] | None,
    ranks: int,
) -> int:
    """Return the batch size per rank, from whichever of the two settings is given."""
    if batch_size is not None and total_batch_size is None:
        return batch_size
    if batch_size is not None or total_batch_size is None:
        raise ConfigError(
            "DataLoader needs either batch_size (images per rank) or total_batch_size (images over all "
            f"ranks), found {batch_size} and {total_batch_size}; set one of them, and the other to ~"
        )
    if total_batch_size == "auto":
        return 1
    fault = f"total_batch_size is {total_batch_size}, which cannot be divided among {ranks} ranks"
    if total_batch_size < ranks:
        raise ConfigError(f"{fault}; the minimum is {ranks}")
    below = total_batch_size // ranks * ranks
    if total_batch_size != below:
        raise ConfigError(
            f"{fault}; the nearest valid sizes are {below} and {below + ranks}"
        )
    return total_batch_size // ranks
