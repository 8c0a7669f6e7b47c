"""One training step: forward and backward passes, then optimizer step and EMA update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..core.contracts import (
    Batch,
    CountsObjects,
    Distills,
    Lesson,
    Target,
    Teaches,
    WeightAverage,
)
from ..core.errors import NumericsError
from ..ops.batch_norm import count_batch
from ..runtime.distributed import everywhere
from .half_weights import HalfWeights
from .numerics import (
    BatchStatistics,
    NumericsGuard,
    first_bad_tensor,
    poisoned_total,
)
from .teacher_clock import TeacherClock


class Part(NamedTuple):
    """Contribution of one batch to a step."""

    losses: dict[str, Tensor]
    """Detached loss terms; the losses of a step are the sum over its parts."""
    outputs: dict[str, Any]
    failure: str | None
    """Reason why there is no loss."""

    def is_finite(self) -> Tensor | bool:
        """Return whether there is a finite loss, as a tensor on the device if there is a loss."""
        return self.failure is None and torch.isfinite(
            add_up(self.losses.values())
        )


MAX_OVERFLOWS = 30
"""Overflows in a row that loss scaling may need to find a scale; more are steps with non-finite gradients."""


@dataclass(kw_only=True)
class TrainStep:
    """Run forward and backward passes for a window of batches, then update the weights and the EMA.

    A window is the list of batches whose gradients are accumulated for one optimizer step.
    """

    model: nn.Module
    """Unwrapped detector."""
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    ema: WeightAverage | None
    scaler: torch.amp.GradScaler | None
    device: torch.device
    amp_dtype: torch.dtype | None
    clip_max_norm: float
    guard: NumericsGuard
    exact: bool = True
    """Normalize losses as if the window were one batch, at the cost of a second forward pass."""
    anchoring: Callable[[], Tensor | None] | None = None
    """Function that returns an additional loss of the last forward pass (Gram anchoring)."""
    distillation: Distills | None = None
    """Additional loss of the last forward pass with parameters of its own, which `optimizer` has too."""
    is_stop_asked: Callable[[], bool] = lambda: False
    """Function that returns whether this rank was asked to stop."""

    def __post_init__(self) -> None:
        self.wrapped: nn.Module = self.model
        """Module that is called: the detector, or its DDP wrapper."""
        self.statistics = BatchStatistics(self.model)
        self.half_weights = HalfWeights(self.model)
        self.teacher_clock = TeacherClock(self.device)
        self._teacher_passes = 1
        """Measured passes of the teacher in a step."""
        self.writes_buckets = False
        """Whether gradients are written directly into the buckets of the DDP wrapper."""
        self._overflows = 0
        """Steps in a row whose gradients overflowed with loss scaling."""
        self.stopping = False
        """Whether any rank was asked to stop in the last step; the same on all ranks."""

    def __call__(
        self, step: int, window: Sequence[Batch]
    ) -> dict[str, Tensor] | None:
        """Run one training step.

        Args:
            step: number of the step.
            window: batches whose gradients are accumulated; ranks synchronize only in the last backward pass.

        Returns:
            The weighted loss terms, detached; None if the step was skipped.

        Raises:
            NumericsError: if too many steps were skipped.
        """
        self.statistics.remember()
        lessons = self._lessons(window)
        sizes = [len(images) for images, _ in window]
        normalizers = self._normalizers(window, sizes)
        parts: list[Part] = []
        for batch, size, normalizer, lesson in zip(
            window, sizes, normalizers, lessons
        ):
            fraction = size / sum(sizes)
            is_last = len(parts) == len(window) - 1
            with nullcontext() if is_last else self._without_sync():
                part = self._forward_backward(
                    batch, normalizer, fraction, lesson
                )
            if not is_last:
                part = part._replace(outputs={})  # frees the graph
            parts.append(part)
        finite_loss, moved = self._optimizer_step(parts)
        is_usual_overflow = (
            self.scaler is not None and self._overflows <= MAX_OVERFLOWS
        )
        if not finite_loss or not (moved or is_usual_overflow):
            self._drop(step, window, parts)
            return None
        if self.writes_buckets:
            self.half_weights.keep_buckets()
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.passed()
        if self.ema is not None and moved:
            self.ema.update(self.model)
        losses: dict[str, Tensor] = {}
        for name in parts[0].losses:
            losses[name] = add_up(part.losses[name] for part in parts)
        return losses

    def teacher_seconds(self) -> float | None:
        """Return the mean time of the teacher in a step, in seconds; None without a teacher."""
        mean = self.teacher_clock.mean()
        return None if mean is None else mean * self._teacher_passes

    def rehearse(self, batch: Batch) -> None:
        """Run one forward and backward pass, then restore all state; only the peak-memory counter changes."""
        self.statistics.remember()
        try:
            (lesson,) = self._lessons([batch])
            self._forward_backward(batch, None, 1.0, lesson)
        finally:
            self.statistics.restore()
            self.optimizer.zero_grad(set_to_none=True)

    def _lessons(self, window: Sequence[Batch]) -> Sequence[Lesson | None]:
        """Return the results of the teacher for each batch, or None for each without such a teacher."""
        distillation = self.distillation
        if not isinstance(distillation, Teaches):
            self._teacher_passes = len(window)
            return [None] * len(window)
        kind, dtype = self.device.type, self.amp_dtype
        on_device = (
            images.to(self.device, non_blocking=True) for images, _ in window
        )
        with (
            self.teacher_clock.measure(),
            torch.autocast(kind, dtype, enabled=dtype is not None),
        ):
            return distillation.consult(on_device)

    def _normalizers(
        self, window: Sequence[Batch], sizes: list[int]
    ) -> list[Any]:
        """Return the normalizers of the criterion for each batch; None lets a batch use its own counts."""
        criterion = self.criterion
        is_exact = self.exact and len(window) > 1
        if not is_exact or not isinstance(criterion, CountsObjects):
            return [None] * len(window)
        counts = []
        # the loss draws the same random numbers again
        with self._isolated_rng(), torch.no_grad():
            for batch in window:
                images, targets = self._to_device(batch)
                try:
                    outputs = self._forward(self.model, images, targets)
                    counts.append(criterion.count(outputs, targets))
                except NumericsError:
                    # raised again, and reported, when the loss is computed
                    objects = sum(len(target["labels"]) for target in targets)
                    counts.append((objects, 0))
        self.statistics.restore()
        return criterion.window_normalizers(counts, sizes, self.device)

    def _forward_backward(
        self,
        batch: Batch,
        normalizers: Any,
        fraction: float,
        lesson: Lesson | None,
    ) -> Part:
        """Add the gradients of a batch.

        Args:
            batch: images and targets.
            normalizers: normalizers of the criterion; None lets the batch use its own counts.
            fraction: fraction of the window's images in this batch.
            lesson: results of the teacher for this batch.
        """
        images, targets = self._to_device(batch)
        outputs = self._forward(self.wrapped, images, targets)
        count_batch(self.model)
        losses: dict[str, Tensor] = {}
        failure = None
        try:
            if normalizers is not None:
                losses = self.criterion(outputs, targets, normalizers)
            else:
                losses = _scaled(self.criterion(outputs, targets), fraction)
            if self.anchoring:
                # `_normalizers` runs without the anchoring and must draw the same numbers
                with self._isolated_rng():
                    anchor = self.anchoring()
                if anchor is not None:
                    losses["loss_gram"] = anchor * fraction
            losses |= self._distilled(images, outputs, fraction, lesson)
            total = add_up(losses.values())
        except NumericsError as error:
            total = poisoned_total(outputs)
            failure = str(error)
        if self.scaler:
            total = self.scaler.scale(total)
        total.backward()
        detached = {name: value.detach() for name, value in losses.items()}
        return Part(detached, outputs, failure)

    def _distilled(
        self,
        images: Tensor,
        outputs: dict[str, Any],
        fraction: float,
        lesson: Lesson | None,
    ) -> dict[str, Tensor]:
        """Return the losses of the distillation by name, which depend on the last forward pass."""
        distillation = self.distillation
        if distillation is None:
            return {}
        if lesson is not None and isinstance(distillation, Teaches):
            return distillation.teach(lesson, outputs, self.criterion, fraction)
        with self.teacher_clock.measure():
            distance = distillation(images)
        if distance is None:
            return {}
        return {"loss_distill": distance * fraction}

    def _forward(
        self, module: nn.Module, images: Tensor, targets: list[Target]
    ) -> dict[str, Any]:
        """Run the model in the precision of the run."""
        kind, dtype = self.device.type, self.amp_dtype
        casts: AbstractContextManager = nullcontext()
        # the search for unused parameters would take those for used that are cast together with used ones
        if dtype and not getattr(module, "find_unused_parameters", False):
            casts = self.half_weights.cast(
                kind, dtype, norms=self.writes_buckets
            )
        with casts, torch.autocast(kind, dtype, enabled=dtype is not None):
            return module(images, targets=targets)

    def _isolated_rng(self) -> AbstractContextManager:
        """Isolate the random state: draws inside do not affect draws after."""
        devices = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices)

    def _to_device(self, batch: Batch) -> Batch:
        """Copy images, boxes and labels to the device."""
        images, targets = batch
        copies: list[Target] = []
        for target in targets:
            boxes = target["boxes"].to(self.device, non_blocking=True)
            labels = target["labels"].to(self.device, non_blocking=True)
            copies.append(Target(boxes=boxes, labels=labels))
        return images.to(self.device, non_blocking=True), copies

    def _without_sync(self) -> AbstractContextManager:
        if isinstance(self.wrapped, DistributedDataParallel):
            return self.wrapped.no_sync()
        return nullcontext()

    def _optimizer_step(self, parts: list[Part]) -> tuple[bool, bool]:
        """Clip the gradients and step the optimizer.

        Returns:
            Whether the loss is finite and whether the weights were updated, each over all ranks. With loss
            scaling, overflowing gradients of a finite loss are normal: the scale is lowered and the step is
            skipped.
        """
        if self.distillation:
            self.distillation.average_gradients()
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        parameters: list[Tensor] = []
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameters.append(parameter)
        max_norm = self.clip_max_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        device = norm.device
        finite = [
            torch.as_tensor(part.is_finite(), device=device) for part in parts
        ]
        all_finite = torch.stack(finite).all()
        # `torch.full` fills on the device; `torch.tensor` would copy to it and wait
        continues = torch.full((), not self.is_stop_asked(), device=device)
        checks = torch.stack([all_finite, torch.isfinite(norm), continues])
        finite_loss, finite_gradient, all_continue = everywhere(checks)
        self.stopping = not all_continue
        is_finite = finite_loss and finite_gradient
        if is_finite:
            if self.distillation:
                self.distillation.observe(parameters)
            self.optimizer.step()
        if self.scaler:
            # lowers the scale if `unscale_` found a gradient that is not finite
            self.scaler.update()
        self._overflows = (
            self._overflows + 1 if finite_loss and not is_finite else 0
        )
        return finite_loss, is_finite

    def _drop(
        self, step: int, window: Sequence[Batch], parts: list[Part]
    ) -> None:
        """Roll back a bad step and report the first bad batch, or all if only a gradient is not finite."""
        reported = slice(None)
        bad = -1
        for index, part in enumerate(parts):
            if not part.is_finite():
                bad = index
                reported = slice(index, index + 1)
                break
        part = parts[bad]
        images, _ = window[bad]
        reason = part.failure
        if not reason:
            reason = first_bad_tensor(
                images, part.outputs, part.losses, self.model
            )
        self.statistics.restore()
        self.optimizer.zero_grad(set_to_none=True)
        losses = [part.losses for part in parts[reported]]
        self.guard.dropped(step, reason, window[reported], losses)


def add_up(values: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more scalars, in two kernels."""
    terms = list(values)
    return terms[0] if len(terms) == 1 else torch.stack(terms).sum()


def _scaled(losses: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    if factor == 1:
        return losses
    return {name: value * factor for name, value in losses.items()}
