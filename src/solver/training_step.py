"""One training step: forward, loss and backward for each batch of a window, then one optimizer step and the EMA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..core.contracts import Batch, CountsObjects, Target, WeightAverage
from ..core.errors import NumericsError
from ..runtime.distributed import everywhere
from .numerics import BatchStatistics, NumericsGuard, first_bad_tensor, poisoned_total


class Part(NamedTuple):
    """What one batch added to a step."""

    losses: dict[str, Tensor]
    """Detached; those of all parts add up to the step's."""
    outputs: dict[str, Any]
    failure: str | None
    """Why there is no loss."""

    def is_finite(self) -> Tensor | bool:
        """True, on the device, if there is a loss and it is finite."""
        return self.failure is None and torch.isfinite(add_up(self.losses.values()))


@dataclass(kw_only=True)
class TrainStep:
    """Forward, loss and backward for each batch of a window; then clipping, optimizer and average."""

    model: nn.Module
    """The detector itself."""
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    ema: WeightAverage | None
    scaler: torch.amp.GradScaler | None
    device: torch.device
    amp_dtype: torch.dtype | None
    clip_max_norm: float
    guard: NumericsGuard
    exact: bool = True
    """Losses of a window are normalised by its objects as if it were one batch, for one more forward pass without a graph."""
    anchoring: Callable[[], Tensor | None] | None = None
    """One more loss of the last forward pass."""
    is_stop_asked: Callable[[], bool] = lambda: False
    """Tells whether this rank was asked to stop."""

    def __post_init__(self) -> None:
        self.wrapped: nn.Module = self.model
        """What is called: the detector, or its wrapper for several ranks."""
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
                part = self._forward_backward(batch, normalizer, number / sum(images))
            parts.append(
                part if len(parts) == len(window) - 1 else part._replace(outputs={})
            )  # frees the graph
        finite_loss, moved = self._optimizer_step(parts)
        if not finite_loss or (not moved and self.scaler is None):
            self._drop(step, window, parts)
            return None
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.passed()
        if self.ema is not None and moved:
            self.ema.update(self.model)
        return {name: add_up(part.losses[name] for part in parts) for name in parts[0].losses}

    def rehearse(self, batch: Batch) -> None:
        """Go forth and back with a batch, and leave everything as it was but the highest mark of memory."""
        self.statistics.remember()
        try:
            self._forward_backward(batch, None, 1.0)
        finally:
            self.statistics.restore()
            self.optimizer.zero_grad(set_to_none=True)

    def _normalizers(self, window: Sequence[Batch], images: list[int]) -> list[Any]:
        """Return what the criterion shall normalise each batch by; None leaves a batch to its own counts."""
        criterion = self.criterion
        if len(window) == 1 or not self.exact or not isinstance(criterion, CountsObjects):
            return [None] * len(window)
        counts = []
        with self._isolated_rng(), torch.no_grad():  # the same random numbers come again with the loss
            for batch in window:
                images_there, targets = self._to_device(batch)
                try:
                    counts.append(criterion.count(self._forward(self.model, images_there, targets), targets))
                except NumericsError:  # comes again, and is reported, with the loss
                    counts.append((sum(len(t["labels"]) for t in targets), 0))
        self.statistics.restore()
        return criterion.window_normalizers(counts, images, self.device)

    def _forward_backward(self, batch: Batch, normalizers: Any, share: float) -> Part:
        """Add the gradients of a batch; `share` is its part of the window."""
        images, targets = self._to_device(batch)
        outputs = self._forward(self.wrapped, images, targets)
        losses: dict[str, Tensor] = {}
        failure = None
        try:
            if normalizers is not None:
                losses = self.criterion(outputs, targets, normalizers)
            else:
                losses = _scaled(self.criterion(outputs, targets), share)
            if self.anchoring:
                with self._isolated_rng():  # the window was counted without it
                    anchor = self.anchoring()
                if anchor is not None:
                    losses["loss_gram"] = anchor * share
            total = add_up(losses.values())
        except NumericsError as error:
            total, failure = poisoned_total(outputs), str(error)
        (self.scaler.scale(total) if self.scaler else total).backward()
        return Part({name: value.detach() for name, value in losses.items()}, outputs, failure)

    def _forward(self, module: nn.Module, images: Tensor, targets: list[Target]) -> dict[str, Any]:
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            return module(images, targets=targets)

    def _isolated_rng(self) -> AbstractContextManager:
        """Keep the random number generators from being moved by what is drawn within."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def _to_device(self, batch: Batch) -> Batch:
        """Copy what the loss needs."""
        images, targets = batch
        copies = [
            Target(
                boxes=target["boxes"].to(self.device, non_blocking=True),
                labels=target["labels"].to(self.device, non_blocking=True),
            )
            for target in targets
        ]
        return images.to(self.device, non_blocking=True), copies

    def _without_sync(self) -> AbstractContextManager:
        return self.wrapped.no_sync() if isinstance(self.wrapped, DistributedDataParallel) else nullcontext()

    def _optimizer_step(self, parts: list[Part]) -> tuple[bool, bool]:
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
        go_on = torch.tensor(not self.is_stop_asked(), device=norm.device)
        agreed = everywhere(torch.stack([finite, torch.isfinite(norm), go_on]))
        finite_loss, finite_gradient, all_go_on = agreed
        self.stopping = not all_go_on
        if self.scaler:
            self.scaler.step(self.optimizer)  # leaves the weights alone if a gradient overflowed
            self.scaler.update()
        elif finite_loss and finite_gradient:
            self.optimizer.step()
        return finite_loss, finite_loss and finite_gradient

    def _drop(self, step: int, window: Sequence[Batch], parts: list[Part]) -> None:
        """Undo what a bad step has done and report the batch that caused it, or all batches if only a gradient is bad."""
        bad = next((index for index, part in enumerate(parts) if not part.is_finite()), None)
        part, (images, _) = (parts[-1], window[-1]) if bad is None else (parts[bad], window[bad])
        reason = part.failure or first_bad_tensor(images, part.outputs, part.losses, self.model)
        self.statistics.restore()
        self.optimizer.zero_grad(set_to_none=True)
        which = slice(None) if bad is None else slice(bad, bad + 1)
        self.guard.dropped(step, reason, window[which], [part.losses for part in parts[which]])


def add_up(values: Iterable[Tensor]) -> Tensor:
    """Return the sum of at least one tensor, added in order."""
    return reduce(torch.add, values)


def _scaled(losses: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    return losses if share == 1 else {name: value * share for name, value in losses.items()}
