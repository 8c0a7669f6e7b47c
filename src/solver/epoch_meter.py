"""Sums over the steps of an epoch: losses, times, images, and boxes that were read and lost."""

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
    """Adds up losses on the device and times on the host; reads the device only when asked.

    Losses are those of all ranks, so that what one rank saves of an epoch holds for the others when they go on with it.
    """

    names: list[str] = field(default_factory=list)
    total: Tensor | None = None
    steps: int = 0
    images: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    boxes_read: int = 0
    """Boxes in the labels of the images of this rank."""
    boxes_lost: Counter[str] = field(default_factory=Counter)
    """Boxes of these that did not reach the loss, by what dropped them."""

    def add(self, losses: dict[str, Tensor], images: int, waited: float) -> None:
        """Count a step. All ranks must call this together."""
        stacked = mean_over_ranks(torch.stack(list(losses.values())))
        self.names = list(losses)
        self.total = stacked if self.total is None else self.total + stacked
        self.steps, self.images, self.waited = self.steps + 1, self.images + images, self.waited + waited

    def count_boxes(self, window: Sequence[Batch]) -> None:
        """Count the boxes of a step; targets of a user's own data set may not tell."""
        for _, targets in window:
            for target in targets:
                self.boxes_read += target.get("boxes_read", 0)
                self.boxes_lost.update(target.get("boxes_lost", {}))

    def boxes_of_all_ranks(self) -> tuple[int, Counter[str]]:
        """Return boxes that were read, and those lost by what dropped them. All ranks must call this together."""
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
        """Time that the epoch has taken."""
        return time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
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
        """Go on with the sums of `state_dict`."""
        total = None if state["total"] is None else state["total"].to(device)
        return EpochMeter(
            list(state["names"]),
            total,
            state["steps"],
            state["images"],
            state["waited"],
            time.perf_counter() - state["seconds"],
            state.get("boxes_read", 0),
            Counter(state.get("boxes_lost", {})),
        )
