"""Where the labels of a file go on their way to the loss: how many come in, how many are lost at which stage and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from ...core.errors import DataError

Effect = Literal["lost", "left out", "changed"]
"""Lost although it was meant to be learned; left out because the file asks for it; learned, but not as it stands."""

LOST_LIMIT = 0.5
"""Fraction of the boxes that may be lost before the loss."""

ADVICE = {
    "box": "tools/dataset/check.py lists them; if bbox holds something else than x, y, width, height in pixels, dataset.box_order "
    "and dataset.box_unit say so",
    "size": "raise eval_spatial_size, lower min_size of SanitizeBoundingBoxes, or cut the images into tiles",
}
"""What to do about losses: to boxes that cannot be used, and to boxes that are too small."""


@dataclass(frozen=True)
class Entry:
    """What one stage does to some boxes."""

    reason: str
    """Follows a number: "without area", "smaller than 1 pixel at 640 x 640"."""
    count: int
    effect: Effect
    cause: Literal["box", "size"] = "box"


@dataclass
class LabelLedger:
    """The account of one annotation file."""

    path: Path
    boxes: int
    """In the file."""
    entries: list[Entry] = field(default_factory=list)

    def add(self, reason: str, count: int, effect: Effect, cause: Literal["box", "size"] = "box") -> None:
        """Add what a stage does to `count` boxes, if there are any."""
        if count:
            self.entries.append(Entry(reason, int(count), effect, cause))

    def after(
        self,
        losses: Callable[[np.ndarray, np.ndarray], Iterable[tuple[str, np.ndarray]]],
        rows: Mapping[str, Tensor],
        sizes: np.ndarray,
    ) -> LabelLedger:
        """Return the account with what the training data's transforms drop in every epoch.

        Args:
            losses: `Compose.certain_losses`.
            rows: `boxes`, `crowds` and `starts` as of `CocoLabels`.
            sizes: `[N, 2]`, (width, height) of the images in pixels.
        """
        account = LabelLedger(self.path, self.boxes, list(self.entries))
        single = ~rows["crowds"].numpy()
        image_of = np.repeat(np.arange(len(sizes)), rows["starts"].diff().numpy())[single]
        boxes = rows["boxes"].numpy().astype(np.float64)[single]
        for reason, lost in losses(boxes, sizes.astype(np.float64)[image_of]):
            account.add(reason, int(lost.sum()), "lost", "size")
        return account

    def total(self, effect: Effect) -> int:
        """Return the number of boxes with an effect."""
        return sum(entry.count for entry in self.entries if entry.effect == effect)

    @property
    def learned(self) -> int:
        """Boxes that reach the loss unless random augmentation cuts them away."""
        return self.boxes - self.total("lost") - self.total("left out")

    def lines(self) -> Iterator[str]:
        """Yield the account as a table of text."""
        yield f"{'labels of ' + str(self.path):<60} {'boxes':>9}"
        yield f"  {'in the file':<58} {self.boxes:>9,}"
        for entry in self.entries:
            if entry.effect != "changed":
                yield f"  {entry.reason + ', ' + entry.effect:<58} {-entry.count:>9,}"
        share = f"  {100 * self.learned / self.boxes:.1f} %" if self.boxes else ""
        yield f"  {'usable':<58} {self.learned:>9,}{share}"
        for entry in self.entries:
            if entry.effect == "changed":
                yield f"  {'of these, ' + entry.reason:<58} {entry.count:>9,}"

    @property
    def fault(self) -> str | None:
        """What is wrong and what to do, if more than half of the boxes are lost; else None."""
        lost = self.total("lost")
        wanted = self.boxes - self.total("left out")
        if not wanted or lost <= LOST_LIMIT * wanted:
            return None
        reasons = ", ".join(f"{e.count} {e.reason}" for e in self.entries if e.effect == "lost")
        worst = max((e for e in self.entries if e.effect == "lost"), key=lambda entry: entry.count)
        return f"{lost} of {wanted} boxes would be lost before the loss ({reasons}); {ADVICE[worst.cause]}"

    def raise_if_mostly_lost(self) -> None:
        """Raise `DataError` if more than half of the boxes are lost."""
        if fault := self.fault:
            raise DataError(f"{self.path}: {fault}")
