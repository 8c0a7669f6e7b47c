"""One training step, one epoch, one evaluation."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..core.contracts import Evaluator
from ..core.errors import NumericsError
from ..runtime.distributed import everywhere, mean_over_ranks, rank
from .numerics import BatchStatistics, NumericsGuard, first_bad_tensor, poisoned_total


@dataclass
class TrainStep:
    """Forward, loss, backward, clipping, optimizer and average for one batch."""

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

    def __post_init__(self) -> None:
        self.statistics = BatchStatistics(self.model)

    def __call__(self, step: int, images: Tensor, targets: list[dict[str, Any]]) -> dict[str, Tensor] | None:
        """Take one step.

        Args:
            step: its number.
            images: `[B, 3, H, W]` in 0..1.
            targets: one an image, `core.contracts.Target`.

        Returns:
            The weighted loss terms, detached; None if the step was dropped.

        Raises:
            NumericsError: if too many steps were dropped.
        """
        images = images.to(self.device, non_blocking=True)
        learned_from = [{k: t[k].to(self.device, non_blocking=True) for k in ("boxes", "labels")} for t in targets]
        self.statistics.remember()
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            outputs = self.wrapped(images, targets=learned_from)
        losses, failure = {}, None
        try:
            losses = self.criterion(outputs, learned_from)
            total = sum(losses.values())
        except NumericsError as error:
            total, failure = poisoned_total(outputs), str(error)
        finite_loss, moved = self._descend(total)
        if not finite_loss or (not moved and self.scaler is None):
            reason = failure or first_bad_tensor(images, outputs, losses, self.model)
            self.statistics.restore()
            self.optimizer.zero_grad(set_to_none=True)
            self.guard.dropped(step, reason, [str(t.get("image_path", "?")) for t in targets])
            return None
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.passed()
        if self.ema is not None and moved:
            self.ema.update(self.model)
        return {name: value.detach() for name, value in losses.items()}

    def _descend(self, total: Tensor) -> tuple[bool, bool]:
        """Go back through the graph and change the weights.

        Returns:
            Whether the loss is finite, and whether the weights moved; both on all ranks. Under loss scaling a finite
            loss with overflowing gradients is no fault: the scale is lowered and the step left out.
        """
        (self.scaler.scale(total) if self.scaler else total).backward()
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_max_norm or float("inf"))
        finite_loss, finite_gradient = everywhere(torch.stack([torch.isfinite(total), torch.isfinite(norm)]))
        if self.scaler:
            self.scaler.step(self.optimizer)  # leaves the weights alone if a gradient overflowed
            self.scaler.update()
        elif finite_loss and finite_gradient:
            self.optimizer.step()
        return finite_loss, finite_loss and finite_gradient


@dataclass
class EpochMeter:
    """Adds up losses on the device and times on the host; reads the device only when asked."""

    names: list[str] = field(default_factory=list)
    total: Tensor | None = None
    steps: int = 0
    images: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def add(self, losses: dict[str, Tensor], images: int, waited: float) -> None:
        """Count a step."""
        stacked = torch.stack(list(losses.values()))
        self.names = list(losses)
        self.total = stacked if self.total is None else self.total + stacked
        self.steps, self.images, self.waited = self.steps + 1, self.images + images, self.waited + waited

    def means(self) -> dict[str, float]:
        """Return the mean of each term over steps and ranks, and their sum as `loss`. All ranks must call this together."""
        if self.total is None:
            return {}
        means = dict(zip(self.names, mean_over_ranks(self.total / self.steps).tolist()))
        return {"loss": sum(means.values()), **means}

    @property
    def seconds(self) -> float:
        """Time since the meter was made."""
        return time.perf_counter() - self.started


def seed_step(seed: int, step: int) -> None:
    """Set all sources of chance for a step of this rank: they follow from (seed, step, rank), so none has to be saved."""
    state = int(np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)[0]) >> 1
    random.seed(state)
    np.random.seed(state % (1 << 32))
    torch.manual_seed(state)


def with_progress(batches: Iterable, description: str, total: int, start: int = 0) -> tqdm:
    """Show a bar with the time left, where somebody is watching a terminal on rank 0."""
    return tqdm(batches, desc=description, total=total, initial=start, disable=None if rank() == 0 else True, leave=False, dynamic_ncols=True)


@torch.inference_mode()
def evaluate(model: nn.Module, postprocessor: nn.Module, loader: Iterable, evaluator: Evaluator, device: torch.device) -> dict[str, Any]:
    """Score a model on a data set, in float32.

    Args:
        model: unwrapped; its training mode is restored afterwards.
        postprocessor: from outputs to detections.
        loader: batches of images and targets; every image once over all ranks.
        evaluator: takes detections by image id.
        device: where the model is.

    Returns:
        Metrics by name, the same on every rank.
    """
    was_training = model.training
    model.eval()
    evaluator.reset()
    for images, targets in with_progress(loader, "evaluation", len(loader)):
        sizes = torch.stack([target["orig_size"] for target in targets]).to(device)
        found = postprocessor(model(images.to(device, non_blocking=True)), sizes)
        evaluator.update({int(target["image_id"]): detections for target, detections in zip(targets, found)})
    evaluator.synchronize()
    model.train(was_training)
    return evaluator.summarize()
