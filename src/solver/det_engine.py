"""One training step, one epoch, one evaluation."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..core.contracts import Batch, Evaluator
from ..core.errors import DataError, NumericsError
from ..runtime.distributed import everywhere, gather_objects, mean_over_ranks, rank
from ..runtime.finite import refuse_non_finite_outputs
from .numerics import (
    ADVICE_FOR_WEIGHTS,
    BatchStatistics,
    NumericsGuard,
    first_bad_tensor,
    keep_batch,
    poisoned_total,
)


class Part(NamedTuple):
    """What one batch added to a step."""

    losses: dict[str, Tensor]
    """Detached; those of all parts add up to the step's."""
    outputs: dict[str, Any]
    failure: str | None
    """Why there is no loss."""

    def is_finite(self) -> Tensor | bool:
        """True, on the device, if there is a loss and it is finite."""
        return self.failure is None and torch.isfinite(sum(self.losses.values()))


@dataclass
class TrainStep:
    """Forward, loss and backward for each batch of a window; then clipping, optimizer and average."""

    model: nn.Module
    """The detector itself."""
    wrapped: nn.Module
    """What is called: the detector, or its wrapper for several ranks."""
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Any | None
    scaler: torch.amp.GradScaler | None
    device: torch.device
    amp_dtype: torch.dtype | None
    clip_max_norm: float
    guard: NumericsGuard
    exact: bool = True
    """Losses of a window are normalised by its objects as if it were one batch, for one more forward pass without a graph."""
    anchoring: Callable[[], Tensor | None] | None = None
    """One more loss of the last forward pass."""
    stop: Callable[[], bool] = lambda: False
    """Tells whether this rank was asked to stop."""

    def __post_init__(self) -> None:
        self.statistics = BatchStatistics(self.model)
        self.stopping = False
        """After a step: whether any rank was asked to stop; the same on all."""

    def __call__(self, step: int, window: Sequence[Batch]) -> dict[str, Tensor] | None:
        """Take one step.

        Args:
            step: its number.
            window: batches whose gradients are added up; only the last one's backward pass waits for other ranks.

        Returns:
            The weighted loss terms, detached; None if the step was dropped.

        Raises:
            NumericsError: if too many steps were dropped.
        """
        self.statistics.remember()
        images = [len(images) for images, _ in window]
        normalizers = self._normalizers(window, images)
        parts: list[Part] = []
        for batch, number, normalizer in zip(window, images, normalizers):
            with nullcontext() if len(parts) == len(window) - 1 else self._without_sync():
                part = self._learn(batch, normalizer, number / sum(images))
            parts.append(
                part if len(parts) == len(window) - 1 else part._replace(outputs={})
            )  # frees the graph
        finite_loss, moved = self._descend(parts)
        if not finite_loss or (not moved and self.scaler is None):
            self._drop(step, window, parts)
            return None
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.passed()
        if self.ema is not None and moved:
            self.ema.update(self.model)
        return {name: sum(part.losses[name] for part in parts) for name in parts[0].losses}

    def rehearse(self, batch: Batch) -> None:
        """Go forth and back with a batch, and leave everything as it was but the highest mark of memory."""
        self.statistics.remember()
        try:
            self._learn(batch, None, 1.0)
        finally:
            self.statistics.restore()
            self.optimizer.zero_grad(set_to_none=True)

    def _normalizers(self, window: Sequence[Batch], images: list[int]) -> list[Any]:
        """Return what the criterion shall normalise each batch by; None leaves a batch to its own counts."""
        if len(window) == 1 or not self.exact or not hasattr(self.criterion, "window_normalizers"):
            return [None] * len(window)
        counts = []
        with self._own_chance(), torch.no_grad():  # each batch meets the same chance again
            for batch in window:
                images_there, targets = self._to_device(batch)
                try:
                    counts.append(
                        self.criterion.count(self._forward(self.model, images_there, targets), targets)
                    )
                except NumericsError:  # comes again, and is told of, with the loss
                    counts.append((sum(len(t["labels"]) for t in targets), 0))
        self.statistics.restore()
        return self.criterion.window_normalizers(counts, images, self.device)

    def _learn(self, batch: Batch, normalizers: Any, share: float) -> Part:
        """Add the gradients of a batch; `share` is its part of the window."""
        images, targets = self._to_device(batch)
        outputs = self._forward(self.wrapped, images, targets)
        losses, failure = {}, None
        try:
            if normalizers is not None:
                losses = self.criterion(outputs, targets, normalizers)
            else:
                losses = _scaled(self.criterion(outputs, targets), share)
            if self.anchoring:
                with self._own_chance():  # what it draws was not drawn when the window was counted
                    anchor = self.anchoring()
                if anchor is not None:
                    losses["loss_gram"] = anchor * share
            total = sum(losses.values())
        except NumericsError as error:
            total, failure = poisoned_total(outputs), str(error)
        (self.scaler.scale(total) if self.scaler else total).backward()
        return Part({name: value.detach() for name, value in losses.items()}, outputs, failure)

    def _forward(self, module: nn.Module, images: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Any]:
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            return module(images, targets=targets)

    def _own_chance(self) -> AbstractContextManager:
        """Leave the chance of what comes after as it would be without what is done within."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def _to_device(self, batch: Batch) -> tuple[Tensor, list[dict[str, Tensor]]]:
        images, targets = batch
        return images.to(self.device, non_blocking=True), [
            {k: t[k].to(self.device, non_blocking=True) for k in ("boxes", "labels")} for t in targets
        ]

    def _without_sync(self) -> AbstractContextManager:
        return self.wrapped.no_sync() if hasattr(self.wrapped, "no_sync") else nullcontext()

    def _descend(self, parts: list[Part]) -> tuple[bool, bool]:
        """Change the weights along the gradients.

        Returns:
            Whether the loss is finite, and whether the weights moved; both on all ranks. Under loss scaling a finite
            loss with overflowing gradients is no fault: the scale is lowered and the step left out.
        """
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        parameters = [
            p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_max_norm or float("inf"))
        finite = torch.stack([torch.as_tensor(part.is_finite(), device=norm.device) for part in parts]).all()
        go_on = torch.tensor(not self.stop(), device=norm.device)
        finite_loss, finite_gradient, go_on = everywhere(torch.stack([finite, torch.isfinite(norm), go_on]))
        self.stopping = not go_on
        if self.scaler:
            self.scaler.step(self.optimizer)  # leaves the weights alone if a gradient overflowed
            self.scaler.update()
        elif finite_loss and finite_gradient:
            self.optimizer.step()
        return finite_loss, finite_loss and finite_gradient

    def _drop(self, step: int, window: Sequence[Batch], parts: list[Part]) -> None:
        """Undo what a bad step has done and tell of the batch that is to blame, or of all if only a gradient is bad."""
        blamed = next((index for index, part in enumerate(parts) if not part.is_finite()), None)
        part, (images, _) = (parts[-1], window[-1]) if blamed is None else (parts[blamed], window[blamed])
        reason = part.failure or first_bad_tensor(images, part.outputs, part.losses, self.model)
        self.statistics.restore()
        self.optimizer.zero_grad(set_to_none=True)
        which = slice(None) if blamed is None else slice(blamed, blamed + 1)
        self.guard.dropped(step, reason, window[which], [part.losses for part in parts[which]])


def _scaled(losses: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    return losses if share == 1 else {name: value * share for name, value in losses.items()}


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


def seed_step(seed: int, step: int) -> None:
    """Set all sources of chance for a step of this rank: they follow from (seed, step, rank), so none has to be saved."""
    state = int(np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)[0]) >> 1
    random.seed(state)
    np.random.seed(state % (1 << 32))
    torch.manual_seed(state)


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Group batches into those of one optimizer step; the last group of an epoch may be smaller."""
    window: list[Batch] = []
    for batch in batches:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def with_progress(batches: Iterable, description: str, total: int, start: int = 0) -> tqdm:
    """Show a bar with the time left, where somebody is watching a terminal on rank 0."""
    return tqdm(
        batches,
        desc=description,
        total=total,
        initial=start,
        disable=None if rank() == 0 else True,
        leave=False,
        dynamic_ncols=True,
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    postprocessor: nn.Module,
    loader: Iterable,
    evaluator: Evaluator,
    device: torch.device,
    between: Callable[[], None] = lambda: None,
    folder: Path | None = None,
    advice: str = ADVICE_FOR_WEIGHTS,
) -> dict[str, Any]:
    """Score a model on a data set, in float32.

    Args:
        model: unwrapped; its training mode is restored afterwards.
        postprocessor: from outputs to detections.
        loader: batches of images and targets; every image once over all ranks.
        evaluator: takes detections by image id.
        device: where the model is.
        between: called before each batch.
        folder: where a batch is saved for which the model gives NaN; None saves nothing.
        advice: what the user can do in this case.

    Returns:
        Metrics by name, the same on every rank.

    Raises:
        NumericsError: if a score or a box is not finite.
        DataError: if images were not scored.
    """
    was_training = model.training
    model.eval()
    evaluator.reset()
    for images, targets in with_progress(loader, "evaluation", len(loader)):
        between()
        sizes = torch.stack([target["orig_size"] for target in targets]).to(device)
        image_ids = [int(target["image_id"]) for target in targets]
        outputs = model(images.to(device, non_blocking=True))
        try:
            refuse_non_finite_outputs(outputs, [f"image {image_id}" for image_id in image_ids])
        except NumericsError as error:
            kept = keep_batch(folder, None, str(error), [(images, targets)])
            raise NumericsError(f"{error}; {kept}; {advice}") from None
        evaluator.update(dict(zip(image_ids, postprocessor(outputs, sizes))))
    evaluator.synchronize()
    _check_complete(evaluator, loader)
    model.train(was_training)
    return evaluator.summarize()


def _check_complete(evaluator: Evaluator, loader: Any) -> None:
    """Make sure that every image of the data set was scored, over all ranks; data or evaluators of a user's own may not tell."""
    found, data = getattr(evaluator, "detections", None), getattr(loader, "dataset", None)
    if found is None or not hasattr(data, "__len__"):
        return
    if len(found) != len(data):
        raise DataError(
            f"{len(found)} of {len(data)} validation images were scored: a loader ended early or images share an id"
        )
