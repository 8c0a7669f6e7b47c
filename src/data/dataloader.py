"""Batches over all ranks: who gets which images, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import cast

import torch
from torch.utils import data

from ..core.contracts import Batch, Collate, DetectionData, FollowsEpochs, require_detection_data
from ..core.errors import ConfigError
from ..core.registry import register
from ..runtime.distributed import rank, world_size
from ..runtime.memory import keep_freed_memory
from .collate import BatchImageCollateFunction
from .worker_watch import POLL_SECONDS, WorkerBatches, end_if_not_handed_over, watched


class GlobalBatchSampler(data.Sampler[list[int]]):
    """Cuts one permutation of the data into global batches and gives each rank its part.

    The permutation follows from (seed, epoch), and a global batch holds the same images for any number of ranks.
    Without `equal_shares` every image comes exactly once and ranks may differ in their number of batches, as
    evaluation wants; with it a few images come twice so that all ranks take equally many steps, as training must.
    """

    def __init__(self, length: int, batch_size: int, *, shuffle: bool, drop_last: bool) -> None:
        """Store the settings; `batch_size` is that of one rank."""
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
        """Yield the indices of each of this rank's batches, from batch `start` on."""
        order = self._order()
        step = self.batch_size * self.world_size
        for begin in range(self.start * step, len(self) * step, step):
            block = order[begin : begin + step]
            share = -(-len(block) // self.world_size)
            mine = block[self.rank * share : (self.rank + 1) * share]
            if mine:
                yield mine

    def __len__(self) -> int:
        """Number of global batches in an epoch."""
        step = self.batch_size * self.world_size
        return self.length // step if self.drop_last else -(-self.length // step)

    def _order(self) -> list[int]:
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % (1 << 63))
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            order = list(range(self.length))
        if self.equal_shares and not self.drop_last:
            order = list(islice(cycle(order), self.length + -self.length % self.world_size))
        return order


@register()
class DataLoader(data.DataLoader):
    """torch's loader over a `GlobalBatchSampler`."""

    __inject__ = ["dataset", "collate_fn"]
    dataset: DetectionData
    collate_fn: Collate
    batch_sampler: GlobalBatchSampler

    def __init__(
        self,
        dataset: DetectionData,
        collate_fn: Collate | None = None,
        batch_size: int | None = None,
        total_batch_size: int | None = None,
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
            dataset: what to load.
            collate_fn: from a list of items to a batch.
            batch_size: images of one rank; or
            total_batch_size: images of all ranks together.
            shuffle: another order in every epoch.
            num_workers: processes that load.
            drop_last: leave out a last batch that is not full.
            pin_memory: None for: where there is a CUDA device.
            prefetch_factor: batches that each worker keeps ready.
            persistent_workers: not supported, since the epoch would not reach them.
            data_timeout: longest wait for a batch of workers, in seconds; 0 for no limit.

        Raises:
            ConfigError: for a batch size that does not fit the ranks or the data, or a data set that lacks a member.
        """
        require_detection_data(dataset)
        ranks = world_size()
        images = _images_per_rank(batch_size, total_batch_size, ranks)
        if images < 1 or num_workers < 0:
            raise ConfigError(
                f"DataLoader: batch_size is {images}, expected at least 1; num_workers is {num_workers}, expected at least 0"
            )
        if data_timeout < 0:
            raise ConfigError(
                f"DataLoader.data_timeout is {data_timeout}, expected seconds, or 0 for no limit"
            )
        if persistent_workers:
            raise ConfigError(
                "DataLoader.persistent_workers is true; workers are started anew each epoch, set it to false"
            )
        if drop_last and images * ranks > len(dataset):
            raise ConfigError(
                f"0 steps per epoch: {len(dataset)} images do not fill one batch of {images * ranks}; reduce total_batch_size"
            )
        keep_freed_memory()
        self.shuffle = shuffle
        self.data_timeout = data_timeout
        sampler = GlobalBatchSampler(len(dataset), images, shuffle=shuffle, drop_last=drop_last)
        super().__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate_fn or BatchImageCollateFunction(),
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
            prefetch_factor=prefetch_factor,
            worker_init_fn=end_if_not_handed_over if num_workers else None,
            timeout=min(POLL_SECONDS, data_timeout or POLL_SECONDS) if num_workers else 0,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its own class of iterators
        """Yield this rank's batches.

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
        """Tell data set, collate function and sampler which epoch it is, and with which batch to begin."""
        self.batch_sampler.epoch, self.batch_sampler.start = epoch, start
        self.dataset.set_epoch(epoch)
        if isinstance(self.collate_fn, FollowsEpochs):
            self.collate_fn.set_epoch(epoch)

    def report_images(self) -> None:
        """Let the data set say what it noticed about its images; all ranks call this together, after an epoch."""
        self.dataset.report_images()

    def set_seed(self, seed: int) -> None:
        """Tell data set and sampler from which seed all chance follows."""
        self.batch_sampler.seed = seed
        self.dataset.seed = seed

    @property
    def total_batch_size(self) -> int:
        """Images of one step over all ranks."""
        return self.batch_sampler.batch_size * self.batch_sampler.world_size


def _images_per_rank(batch_size: int | None, total_batch_size: int | None, ranks: int) -> int:
    """Return the batch size of one rank from whichever of the two settings is given."""
    if batch_size is not None and total_batch_size is None:
        return batch_size
    if batch_size is not None or total_batch_size is None:
        raise ConfigError(
            "DataLoader needs either batch_size (of one rank) or total_batch_size (of all ranks)"
        )
    fault = f"total_batch_size {total_batch_size} cannot be shared by {ranks} ranks"
    if total_batch_size < ranks:
        raise ConfigError(f"{fault}; the least that can is {ranks}")
    below = total_batch_size // ranks * ranks
    if total_batch_size != below:
        raise ConfigError(f"{fault}; the nearest that can are {below} and {below + ranks}")
    return total_batch_size // ranks
