"""Where a run stands and what its epochs are: stages, phases, steps, early stopping. It answers questions and holds no tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..core.contracts import DetectionLoader, StagedCollate
from ..core.yaml_config import RunSettings
from ..runtime.log import logger


@dataclass
class Progress:
    """Where a run stands: the next step to take."""

    epoch: int = 0
    step: int = 0
    """Steps of this epoch that are done."""
    total_steps: int = 0
    """Steps of the run that are done."""

    def restart_epoch(self) -> None:
        """Go back to the first step of the epoch."""
        self.total_steps -= self.step
        self.step = 0


@dataclass(frozen=True)
class TrainingPlan:
    """The epochs of a run, counted from 0.

    There are two stages: 1 with strong augmentation and many sizes, 2 clean, from the best weights of stage 1. Phases
    are another matter: in each, more of the model is trained than in the one before.
    """

    epochs: int
    steps_per_epoch: int
    """Optimizer steps."""
    window: int
    """Batches of one optimizer step."""
    batch_size: int
    """Images of one optimizer step, over all ranks."""
    stop_epoch: int | None = None
    """First epoch of stage 2; None or beyond the end for none."""
    ema_restart_decay: float | None = None
    """Decay of the EMA in stage 2; None keeps that of stage 1."""
    thaws: frozenset[int] = frozenset({0})
    """Epochs in which parameters begin to be trained."""
    patience: int | None = None
    """Epochs without a better score after which a stage ends; None for never."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def last_thaw(self) -> int:
        """First epoch of the last phase of this run, in which everything is trained that ever is."""
        return max((thaw for thaw in self.thaws if thaw < self.epochs), default=0)

    @property
    def unreached_thaws(self) -> list[int]:
        """Epochs beyond the end of the run in which more would be trained."""
        return sorted(thaw for thaw in self.thaws if thaw >= self.epochs)

    def is_over(self, progress: Progress) -> bool:
        """Return whether all epochs are done."""
        return progress.epoch >= self.epochs

    def stage(self, epoch: int) -> int:
        """Return 1 or 2."""
        return 2 if self.stop_epoch is not None and epoch >= self.stop_epoch else 1

    def restarts_at(self, epoch: int) -> bool:
        """True for the epoch at whose start the best weights of stage 1 are loaded."""
        return epoch == self.stop_epoch and epoch > 0

    def next_epoch(self, epoch: int, best_epoch: int | None) -> int:
        """Return the epoch after `epoch`: the next one, or if patience has run out, the first of stage 2 or the end.

        Patience begins anew with stage 2, and does not run before the last phase has begun: what is still frozen may help.

        Args:
            epoch: the one that has ended, evaluation included.
            best_epoch: the one with the best score.
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
        if self.stop_epoch is not None and epoch < self.stop_epoch < self.epochs:
            return self.stop_epoch
        return self.epochs


def steps_per_epoch(loader: DetectionLoader, grad_accum_steps: int) -> int:
    """Return the optimizer steps of an epoch; the last one may have fewer batches."""
    return -(-len(loader) // grad_accum_steps)


def make_plan(settings: RunSettings, loader: DetectionLoader, thaws: Iterable[int]) -> TrainingPlan:
    """Plan a run.

    Args:
        settings: of the run.
        loader: of training; its collate function may have stages.
        thaws: epochs in which parameters begin to be trained.
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


def continued_progress(saved: Progress, saved_batch_size: int, batch_size: int) -> Progress:
    """Return where a run continues if a step now takes another number of images.

    Whole epochs stay whole; within one, the data continue at the last whole new step, so that no image is left out.
    """
    if batch_size == saved_batch_size:
        return saved
    step = saved.step * saved_batch_size // batch_size
    logger.warning(
        "a step takes %d images now, %d before: epoch %d goes on with step %d, rates and averages count other steps than they would have",
        batch_size,
        saved_batch_size,
        saved.epoch + 1,
        step + 1,
    )
    return Progress(saved.epoch, step, saved.total_steps)
