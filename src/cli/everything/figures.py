"""Settings, results and clock of all measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

PER_SECOND = "images per CPU second"
OF_A_VIT = "of a bare ViT-S/16"
CPU_SECONDS = "CPU seconds"

INPUTS = "inputs"


@dataclass(frozen=True)
class Settings:
    """Settings of all measurements."""

    folder: Path
    """An empty folder for files that a measurement writes."""
    data: Path | None = None
    """A folder with `images/`, `train.json` and `val.json`; without it, synthetic images are measured."""
    repeats: int = 5
    """Measured runs of each work; the least CPU time counts."""

    @property
    def inputs(self) -> Path:
        """Folder for images that a measurement makes: `images/` and `train.json`. Other libraries read it."""
        return self.folder / INPUTS


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    >>> Figure(2, "photos of 12 megapixels", 60.0, PER_SECOND, target=50.0, at_least=True).is_met
    True
    """

    row: int
    """Number of the row in the table of docs/performance.md."""
    work: str
    """What was measured, in a few words."""
    value: float
    unit: str
    """Such as `of a bare ViT-S/16`: the forward pass of one image; or `images per CPU second`."""
    who: str = "ours"
    """Name of the library: `ours` or that of a peer."""
    target: float | None = None
    at_least: bool = False
    """Whether the target is a lower limit instead of an upper limit."""
    seconds: float | None = None
    """CPU seconds of the work, or of one image; None if the value is not a time."""

    @property
    def is_met(self) -> bool | None:
        """Return whether the target is reached; None without one."""
        if self.target is None:
            return None
        if self.at_least:
            return self.value >= self.target
        return self.value <= self.target

    @property
    def cpu_seconds(self) -> float | None:
        """Return the CPU seconds of the work, or of one image, if they are known."""
        if self.seconds is None and self.unit == PER_SECOND:
            return 1 / self.value
        return self.seconds


def least_cpu_seconds(
    works: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> dict[str, float]:
    """Run all works in turn; return the least CPU seconds of this process for each.

    Args:
        works: functions by name.
        repeats: measured runs of each.
        warmup: runs of each before these, not measured.
    """
    least = dict.fromkeys(works, float("inf"))
    for turn in range(-warmup, repeats):
        for name, work in works.items():
            start = time.process_time()
            work()
            seconds = time.process_time() - start
            if turn >= 0:
                least[name] = min(least[name], seconds)
    return least


def yardstick_seconds(repeats: int = 15) -> float:
    """Return the least CPU seconds of a 1024 x 1024 float32 matrix product on one thread."""
    import torch

    matrix = torch.rand(1024, 1024)
    work = {"yardstick": lambda: matrix @ matrix}
    return least_cpu_seconds(work, repeats)["yardstick"]
