"""Sums over the steps of an epoch: losses, times, images, and boxes read and lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.contracts import Batch
from ..runtime.distributed import gather_objects, mean_over_ranks


@dataclass
class EpochMeter:
    """Sum losses on the device and times on the host; only `means` reads the device.

    Losses are averaged over all ranks, so that the state saved by one rank is valid for all ranks on resume.
    """

    names: list[str] = field(default_factory=list)
    total: Tensor | None = None
    steps: int = 0
    images: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    boxes_read: int = 0
    """Number of boxes in the labels of this rank's images."""
    boxes_lost: Counter[str] = field(default_factory=Counter)
    """Number of these boxes that did not reach the loss, by the transform that dropped them."""

    def add(
        self, losses: dict[str, Tensor], images: int, waited: float
    ) -> None:
        """Add the values of one step. All ranks must call this together.

        Args:
            losses: loss terms of the step, detached.
            images: number of images of the step, over all ranks.
            waited: seconds spent waiting for data.
        """
        stacked = mean_over_ranks(torch.stack(list(losses.values())))
        self.names = list(losses)
        self.total = stacked if self.total is None else self.total + stacked
        self.steps += 1
        self.images += images
        self.waited += waited

    def count_boxes(self, window: Sequence[Batch]) -> None:
        """Count the boxes of a step; targets of a user's own data set may lack these counts."""
        for _, targets in window:
            for target in targets:
                self.boxes_read += target.get("boxes_read", 0)
                self.boxes_lost.update(target.get("boxes_lost", {}))

    def boxes_of_all_ranks(self) -> tuple[int, Counter[str]]:
        """Return the boxes read, and the boxes lost by transform. All ranks must call this together."""
        read, lost = zip(*gather_objects((self.boxes_read, self.boxes_lost)))
        return sum(read), sum(lost, Counter())

    def means(self) -> dict[str, float]:
        """Return the mean of each term over steps and ranks, and their sum as `loss`."""
        if self.total is None:
            return {}
        means = dict(zip(self.names, (self.total / self.steps).tolist()))
        return {"loss": sum(means.values()), **means}

    @property
    def seconds(self) -> float:
        """Seconds since the epoch started."""
        return time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, for the checkpoint."""
        return {
            "names": self.names,
            "total": self.total,
            "steps": self.steps,
            "images": self.images,
            "waited": self.waited,
            "seconds": self.seconds,
            "boxes_read": self.boxes_read,
            "boxes_lost": dict(self.boxes_lost),
        }

    @staticmethod
    def from_state(state: dict[str, Any], device: torch.device) -> EpochMeter:
        """Restore a meter from `state_dict`."""
        total = state["total"]
        return EpochMeter(
            names=list(state["names"]),
            total=None if total is None else total.to(device),
            steps=state["steps"],
            images=state["images"],
            waited=state["waited"],
            started=time.perf_counter() - state["seconds"],
            boxes_read=state.get("boxes_read", 0),
            boxes_lost=Counter(state.get("boxes_lost", {})),
        )
