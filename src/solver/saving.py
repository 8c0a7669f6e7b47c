"""Save a run when it is due, and end it when it was asked to stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..core.errors import Preempted, ResourceError
from ..core.yaml_config import RunSettings
from ..runtime.distributed import barrier, broadcast_object, is_main
from ..runtime.stop import StopRequest
from .callbacks import Callbacks, SaveEvent
from .checkpoint import BEST, LAST, CheckpointFolder, numbered_name
from .plan import TrainingPlan
from .resume import resume_hint
from .run_state import RunFacts, RunState, inference_checkpoint


class Saver:
    """Write `last.pth` and `best.pth` of a run; only rank 0 writes."""

    def __init__(
        self,
        checkpoints: CheckpointFolder,
        facts: RunFacts,
        state: RunState,
        plan: TrainingPlan,
        settings: RunSettings,
        stop: StopRequest,
        callbacks: Callbacks | None = None,
    ) -> None:
        """Store the arguments; nothing is written yet."""
        self.checkpoints = checkpoints
        self.facts = facts
        self.state = state
        self.plan = plan
        self.settings = settings
        self.stop = stop
        self.callbacks = callbacks or Callbacks()
        self._saved_at = time.monotonic()

    def save_last(self) -> bool:
        """Write `last.pth` and return whether this succeeded."""
        self._saved_at = time.monotonic()
        saved = self.checkpoints.save_last(self.state.state_dict(self.facts))
        if saved:
            progress = self.state.progress
            # an epoch that is over has moved on to the next one
            epoch = progress.epoch + (progress.step > 0)
            self._report(LAST, epoch)
        return saved

    def _report(self, name: str, epoch: int) -> None:
        """Call `on_save` for a checkpoint of an epoch, from 1."""
        if self.callbacks.has("on_save"):
            path = self.checkpoints.folder / name
            self.callbacks.call("on_save", SaveEvent(path, epoch))

    def save_if_due(self) -> None:
        """Write `last.pth` within an epoch, at the configured interval; `keep` writes it after the epoch."""
        step = self.state.progress.step
        if not is_main() or step == self.plan.steps_per_epoch:
            return
        steps = self.settings.save_every_steps
        by_steps = steps and step % steps == 0
        minutes = self.settings.save_every_minutes
        by_time = minutes and time.monotonic() - self._saved_at >= 60 * minutes
        if by_steps or by_time:
            self.save_last()

    def keep(
        self, epoch: int, metrics: Mapping[str, Any], *, improved: bool
    ) -> None:
        """Write the checkpoints of a completed epoch. All ranks must call this together.

        `best.pth` is written first, because `last.pth` refers to it.

        Args:
            epoch: epoch from 0.
            metrics: results of the epoch's evaluation.
            improved: whether its score is the best so far.
        """
        if is_main():
            every = self.settings.checkpoint_freq
            is_numbered = bool(every) and (epoch + 1) % every == 0
            if improved or is_numbered:
                metric = self.state.best.metric
                content = inference_checkpoint(
                    self.state.scored, self.facts, epoch, metrics, metric
                )
                if improved:
                    self.checkpoints.save_best(content)
                    self._report(BEST, epoch + 1)
                if is_numbered:
                    self.checkpoints.save_numbered(epoch, content)
                    self._report(numbered_name(epoch), epoch + 1)
            self.save_last()
        barrier()

    def save_and_stop(self) -> None:
        """Save and end the run, after the same step on all ranks.

        Raises:
            Preempted: if the state was saved.
            ResourceError: if it could not be saved.
        """
        saved = self.save_last() if is_main() else None
        raise self._stopped(saved=broadcast_object(saved))

    def stop_evaluation(self) -> None:
        """End the run if rank 0 was asked to stop; the resumed run repeats the evaluation of this epoch.

        Other ranks do not stop here, since ranks may have different numbers of batches; the launcher ends
        them together with rank 0.
        """
        if self.stop.asked and is_main():
            raise self._stopped(saved=self.save_last())

    def _stopped(self, *, saved: bool) -> Preempted | ResourceError:
        """Return the exception that ends a stopped run."""
        signal = self.stop.signal
        name = self.stop.reason or "a signal to another rank"
        if signal is not None:
            name = signal.name
        progress = self.state.progress
        where = (
            f"stopped by {name} after step {progress.step} of {self.plan.steps_per_epoch} in epoch "
            f"{progress.epoch + 1}"
        )
        last = self.checkpoints.folder / LAST
        if saved:
            return Preempted(
                f"{where}; the state is saved, {resume_hint(last)}"
            )
        older = f"there is no {last}"
        if last.exists():
            older = f"{last} is of an earlier step"
        why = f" ({self.checkpoints.unsaved})" if is_main() else ""
        return ResourceError(
            f"{where}, but the state could not be saved{why}; {older}"
        )
