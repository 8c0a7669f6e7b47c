"""Protocols of a loader of batches, its sampler and its collate function.

They are separate from `contracts.py` because a loader has a data set (`detection_data.py`), whose targets are
described there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from .contracts import Batch
from .detection_data import DetectionData


class DetectionLoader(Protocol):
    """Batches of one rank."""

    dataset: DetectionData
    collate_fn: Collate
    batch_sampler: RankBatches

    @property
    def total_batch_size(self) -> int:
        """Images per step over all ranks."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's batches."""

    def set_seed(self, seed: int) -> None:
        """Store the random seed of the run."""

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Store the epoch that begins, and the number of its first batch."""

    def report_images(self) -> None:
        """Log new observations about images. All ranks call this together."""


class RankBatches(Protocol):
    """The batch sampler of a loader."""

    batch_size: int
    """Images per rank."""
    equal_shares: bool
    """Whether all ranks take the same number of steps, as training requires, by repeating a few images."""


class Collate(Protocol):
    """Function that combines items of a data set into a batch."""

    def __call__(self, items: list[Any]) -> Batch:
        """Return images `[B, 3, H, W]` and their targets."""


@runtime_checkable
class FollowsEpochs(Protocol):
    """A part of the loader that depends on the epoch, such as a collate function with two stages."""

    def set_epoch(self, epoch: int) -> None:
        """Store the epoch that begins."""


@runtime_checkable
class StagedCollate(Protocol):
    """A collate function with a final stage without strong augmentation."""

    stop_epoch: int | None
    """First epoch of that stage; None disables it."""
    ema_restart_decay: float | None
    """Decay of the EMA from that epoch on; None keeps the decay."""


@runtime_checkable
class MultiScaleCollate(Protocol):
    """A collate function that resizes batches to several sizes."""

    def largest_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the largest (height, width) to which a batch of images of this size can be resized."""


@runtime_checkable
class MixesImages(Protocol):
    """A data set or a collate function that may combine several images."""

    mixing: Sequence[str]
    """Active settings that combine images; evaluation refuses them."""
