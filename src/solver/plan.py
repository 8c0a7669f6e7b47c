"""Progress and plan of a run: epochs, steps, stages, phases and early stopping. Holds no tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..core.counts import counted
from ..core.loader_contracts import DetectionLoader, StagedCollate
from ..core.yaml_config import RunSettings
from ..runtime.log import logger


@dataclass
class Progress:
    """Position of the next step in a run."""

    epoch: int = 0
    step: int = 0
    """Completed steps of this epoch."""
    total_steps: int = 0
    """Completed steps of the run."""

    def restart_epoch(self) -> None:
        """Return to the first step of the epoch."""
        self.total_steps -= self.step
        self.step = 0


@dataclass(frozen=True)
class TrainingPlan:
    """Plan of the epochs of a run, counted from 0.

    Stage 1 has strong augmentation and several image sizes. Stage 2 has neither; it starts from the best
    weights of stage 1. Phases are independent of stages: each phase trains more of the model than the one
    before.
    """

    epochs: int
    steps_per_epoch: int
    """Optimizer steps of an epoch."""
    window: int
    """Batches of one optimizer step (gradient accumulation)."""
    batch_size: int
    """Images of one optimizer step, over all ranks."""
    stop_epoch: int | None = None
    """First epoch of stage 2; there is no stage 2 if it is None or not below `epochs`."""
    ema_restart_decay: float | None = None
    """Decay of the EMA in stage 2; None keeps that of stage 1."""
    thaws: frozenset[int] = frozenset({0})
    """Epochs in which parameters become trainable."""
    patience: int | None = None
    """Epochs without a better score after which a stage ends; None disables early stopping."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def last_thaw(self) -> int:
        """First epoch of the last phase that this run reaches."""
        return max(
            (thaw for thaw in self.thaws if thaw < self.epochs), default=0
        )

    @property
    def unreached_thaws(self) -> list[int]:
        """First epochs of phases that this run does not reach."""
        return sorted(thaw for thaw in self.thaws if thaw >= self.epochs)

    def is_over(self, progress: Progress) -> bool:
        """Return whether all epochs are completed."""
        return progress.epoch >= self.epochs

    def stage_one_progress(self, epoch: int) -> float:
        """Return the fraction of the epochs of stage 1 that are over when an epoch begins, 0..1."""
        end = self.epochs
        if self.stop_epoch is not None:
            end = min(end, self.stop_epoch)
        return min(1.0, epoch / end) if end > 0 else 1.0

    def stage(self, epoch: int) -> int:
        """Return the stage of an epoch: 1 or 2."""
        return (
            2 if self.stop_epoch is not None and epoch >= self.stop_epoch else 1
        )

    def restarts_at(self, epoch: int) -> bool:
        """Return whether the best weights of stage 1 are loaded at the start of an epoch."""
        return epoch == self.stop_epoch and epoch > 0

    def next_epoch(self, epoch: int, best_epoch: int | None) -> int:
        """Return the epoch that follows `epoch`.

        If patience has run out, this is the first epoch of stage 2 or the end of the run. Patience starts
        again with stage 2. It does not count before the last phase, because unfreezing more of the model may
        still help.

        Args:
            epoch: epoch that has ended, including its evaluation.
            best_epoch: epoch with the best score, or None.
        """
        if self.patience is None:
            return epoch + 1
        begin = self.last_thaw
        if self.stop_epoch is not None and self.stage(epoch) == 2:
            begin = max(begin, self.stop_epoch)
        since = begin - 1
        if best_epoch is not None:
            since = max(since, best_epoch)
        if epoch < begin or epoch - since < self.patience:
            return epoch + 1
        if (
            self.stop_epoch is not None
            and epoch < self.stop_epoch < self.epochs
        ):
            return self.stop_epoch
        return self.epochs


def steps_per_epoch(loader: DetectionLoader, grad_accum_steps: int) -> int:
    """Return the optimizer steps of an epoch; the last one may have fewer batches."""
    return math.ceil(len(loader) / grad_accum_steps)


def make_plan(
    settings: RunSettings, loader: DetectionLoader, thaws: Iterable[int]
) -> TrainingPlan:
    """Plan a run.

    Args:
        settings: settings of the run.
        loader: training loader; its collate function may have stages.
        thaws: epochs in which parameters become trainable.
    """
    collate = loader.collate_fn
    staged = collate if isinstance(collate, StagedCollate) else None
    window = min(settings.grad_accum_steps, len(loader))
    return TrainingPlan(
        epochs=settings.epochs,
        steps_per_epoch=steps_per_epoch(loader, settings.grad_accum_steps),
        window=window,
        batch_size=loader.total_batch_size * window,
        stop_epoch=None if staged is None else staged.stop_epoch,
        ema_restart_decay=None if staged is None else staged.ema_restart_decay,
        thaws=frozenset(thaws),
        patience=settings.patience,
    )


def continued_progress(
    saved: Progress, saved_batch_size: int, batch_size: int
) -> Progress:
    """Return the position at which a run continues if the effective batch size has changed.

    Completed epochs stay completed. Within an epoch, the run continues at the last full step of the new size,
    so that no image is skipped.
    """
    if batch_size == saved_batch_size:
        return saved
    step = saved.step * saved_batch_size // batch_size
    logger.warning(
        "a step now has %s, before it had %d: epoch %d continues with step %d; learning rate "
        "schedule and EMA count steps of different sizes",
        counted(batch_size, "image"),
        saved_batch_size,
        saved.epoch + 1,
        step + 1,
    )
    return Progress(saved.epoch, step, saved.total_steps)
