"""Ledger of the labels of a file.

It counts the boxes in the file and those that are lost on the way to the loss, by stage and reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from ...core.commands import command_name
from ...core.errors import DataError

Effect = Literal["lost", "left out", "changed"]
"""Lost although it should be learned; left out because the file excludes it; or learned in a changed form."""

LOST_LIMIT = 0.5
"""Fraction of the boxes that may be lost before the loss."""

ADVICE = {
    "box": f"{command_name('check')} lists them; if bbox is not x, y, width, height in pixels, "
    "set dataset.box_order and dataset.box_unit",
    "size": "raise eval_spatial_size, lower min_size of SanitizeBoundingBoxes, or cut the images into tiles",
}
"""Advice about losses, for boxes that cannot be used and for boxes that are too small."""

TOO_SMALL = "they are not learned, but evaluation would count them"
"""Consequence for boxes that are too small for training."""


@dataclass(frozen=True)
class Entry:
    """The effect of one stage on some boxes."""

    reason: str
    """Description that follows a number: "without area", "smaller than 1 pixel at 640 x 640"."""
    count: int
    effect: Effect
    cause: Literal["box", "size"] = "box"


@dataclass
class LabelLedger:
    """Numbers of boxes of one annotation file, by stage and reason."""

    path: Path
    boxes: int
    """Number of boxes in the file."""
    entries: list[Entry] = field(default_factory=list)

    def add(
        self,
        reason: str,
        count: int,
        effect: Effect,
        cause: Literal["box", "size"] = "box",
    ) -> None:
        """Add an effect on `count` boxes, if there are any."""
        if count:
            self.entries.append(Entry(reason, int(count), effect, cause))

    def after(
        self,
        losses: Callable[
            [np.ndarray, np.ndarray], Iterable[tuple[str, np.ndarray]]
        ],
        rows: Mapping[str, Tensor],
        sizes: np.ndarray,
    ) -> LabelLedger:
        """Return a copy of the ledger with the boxes that the training transforms drop in every epoch.

        Args:
            losses: `Compose.certain_losses`.
            rows: `boxes`, `crowds` and `starts` of `CocoLabels`.
            sizes: `[N, 2]`, (width, height) of the images in pixels.
        """
        ledger = LabelLedger(self.path, self.boxes, list(self.entries))
        learned = ~rows["crowds"].numpy()
        counts = rows["starts"].diff().numpy()
        image_of = np.repeat(np.arange(len(sizes)), counts)[learned]
        sizes_of_boxes = sizes.astype(np.float64)[image_of]
        boxes = rows["boxes"].numpy().astype(np.float64)[learned]
        for reason, lost in losses(boxes, sizes_of_boxes):
            ledger.add(reason, int(lost.sum()), "lost", "size")
        return ledger

    def total(self, effect: Effect) -> int:
        """Return the number of boxes with an effect."""
        return sum(
            entry.count for entry in self.entries if entry.effect == effect
        )

    @property
    def learned(self) -> int:
        """Number of boxes that reach the loss unless random augmentation removes them."""
        return self.boxes - self.total("lost") - self.total("left out")

    def lines(self) -> Iterator[str]:
        """Yield the lines of the ledger as a text table."""
        yield f"{'labels of ' + str(self.path):<60} {'boxes':>9}"
        yield f"  {'in the file':<58} {self.boxes:>9,}"
        for entry in self.entries:
            if entry.effect != "changed":
                yield f"  {entry.reason + ', ' + entry.effect:<58} {-entry.count:>9,}"
        fraction = ""
        if self.boxes:
            fraction = f"  {100 * self.learned / self.boxes:.1f} %"
        yield f"  {'usable':<58} {self.learned:>9,}{fraction}"
        for entry in self.entries:
            if entry.effect == "changed":
                yield f"  {'of these, ' + entry.reason:<58} {entry.count:>9,}"

    @property
    def fault(self) -> str | None:
        """Description of the problem with advice, if more than half of the boxes are lost; otherwise None."""
        lost = self.total("lost")
        wanted = self.boxes - self.total("left out")
        if not wanted or lost <= LOST_LIMIT * wanted:
            return None
        losses = [entry for entry in self.entries if entry.effect == "lost"]
        reasons = ", ".join(f"{entry.count} {entry.reason}" for entry in losses)
        worst = max(losses, key=lambda entry: entry.count)
        advice = ADVICE[worst.cause]
        return f"{lost} of {wanted} boxes would be lost before the loss ({reasons}); {advice}"

    def raise_if_mostly_lost(self) -> None:
        """Raise `DataError` if more than half of the boxes are lost."""
        fault = self.fault
        if fault:
            raise DataError(f"{self.path}: {fault}")
