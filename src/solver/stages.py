"""What holds in which epoch: strong augmentation or clean, and when the weight average starts anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainingStages:
    """Two stages: 1 with strong augmentation and many sizes, 2 clean, from the best weights of stage 1."""

    epochs: int
    stop_epoch: int | None
    """First epoch of stage 2; None or beyond the end for none."""
    ema_restart_decay: float

    @staticmethod
    def from_loader(loader: Any, epochs: int) -> TrainingStages:
        """Read the keys that D-FINE's users know from the training loader's collate function."""
        collate = loader.collate_fn
        return TrainingStages(epochs, getattr(collate, "stop_epoch", None), getattr(collate, "ema_restart_decay", 0.9999))

    def stage(self, epoch: int) -> int:
        """Return 1 or 2."""
        return 2 if self.stop_epoch is not None and epoch >= self.stop_epoch else 1

    def restarts_at(self, epoch: int) -> bool:
        """True for the epoch at whose start the best weights of stage 1 are taken up again."""
        return epoch == self.stop_epoch and epoch > 0
