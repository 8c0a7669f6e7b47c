"""Where a run stands, and what holds in which epoch: strong augmentation or clean, when the weight average starts anew, when a run may stop early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Progress:
    """Where a run stands: the next step to take."""

    epoch: int = 0
    step: int = 0
    """Steps of this epoch that are done."""
    total_steps: int = 0
    """Steps of the run that are done."""


@dataclass(frozen=True)
class TrainingStages:
    """Two stages: 1 with strong augmentation and many sizes, 2 clean, from the best weights of stage 1."""

    epochs: int
    stop_epoch: int | None
    """First epoch of stage 2; None or beyond the end for none."""
    ema_restart_decay: float | None
    """None keeps the decay of stage 1."""
    last_thaw: int = 0
    """First epoch of the last phase, in which everything learns that ever does."""
    patience: int | None = None
    """Epochs without a better score after which a stage ends; None for never."""

    @staticmethod
    def from_loader(
        loader: Any, epochs: int, last_thaw: int = 0, patience: int | None = None
    ) -> TrainingStages:
        """Read the keys that D-FINE's users know from the training loader's collate function."""
        collate = loader.collate_fn
        return TrainingStages(
            epochs,
            getattr(collate, "stop_epoch", None),
            getattr(collate, "ema_restart_decay", 0.9999),
            last_thaw,
            patience,
        )

    def stage(self, epoch: int) -> int:
        """Return 1 or 2."""
        return 2 if self.stop_epoch is not None and epoch >= self.stop_epoch else 1

    def restarts_at(self, epoch: int) -> bool:
        """True for the epoch at whose start the best weights of stage 1 are taken up again."""
        return epoch == self.stop_epoch and epoch > 0

    def next_epoch(self, epoch: int, best_epoch: int | None) -> int:
        """Return the epoch to go on with after `epoch`: the next, or if patience has run out, the first of stage 2 or the end.

        Patience begins anew with stage 2, and does not run before the last phase has begun: what has still to thaw may help.

        Args:
            epoch: the one that has ended, evaluation included.
            best_epoch: the one with the best score.
        """
        if self.patience is None:
            return epoch + 1
        begin = max(self.last_thaw, (self.stop_epoch or 0) if self.stage(epoch) == 2 else 0)
        waited = epoch - max(begin - 1, -1 if best_epoch is None else best_epoch)
        if epoch < begin or waited < self.patience:
            return epoch + 1
        clean_to_come = (
            self.stage(epoch) == 1 and self.stop_epoch is not None and self.stop_epoch < self.epochs
        )
        return max(self.stop_epoch, epoch + 1) if clean_to_come else self.epochs
