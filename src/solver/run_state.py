"""Constant facts of a run, and the state that training changes, with saving and restoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.contracts import Distills, WeightAverage
from ..core.counts import counted
from ..core.detection_data import DetectionData
from ..core.errors import CheckpointError
from ..detection.fitting import completed, load_strictly
from ..detection.lora_weights import merged_state_dict
from ..detection.weight_file import WeightFile
from ..runtime.distributed import world_size
from ..runtime.log import logger
from .epoch_meter import EpochMeter
from .model_selection import BestModel
from .numerics import NumericsGuard
from .plan import Progress, TrainingPlan, continued_progress
from .run_identity import Identity
from .state_schema import check_optimizer_state


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run that every checkpoint stores."""

    seed: int
    classes: list[dict[str, Any]]
    """`id` and `name` of each label."""
    config_text: str
    """Resolved configuration as YAML."""
    provenance: dict[str, Any]
    """Commit, command, licences and so on (`provenance.provenance`)."""
    preprocessing: list[dict[str, Any]]
    """Transforms of the evaluation, as in the configuration."""
    bit_depth: int | None
    """Number of bits that the samples of 16-bit images use; None means 16."""
    input_size: tuple[int, ...]
    """(height, width) in pixels; empty if images are not resized."""
    identity: dict[str, Identity]
    """Digests of the data."""
    batch_size: int
    """Images of one optimizer step, over all ranks."""


@dataclass
class RunState:
    """State that training changes and `last.pth` stores."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: WeightAverage | None
    scaler: torch.amp.GradScaler | None
    guard: NumericsGuard
    best: BestModel
    train_data: DetectionData
    """Training data, which records images that could not be read."""
    distillation: Distills | None = None
    """Loss with a teacher and trainable parameters of its own."""
    progress: Progress = field(default_factory=Progress)
    meter: EpochMeter | None = None
    """Meter of the epoch in progress."""
    first_loss: float | None = None
    """Mean loss of the first epoch."""
    explained: bool = False
    """Whether the warning of `explain_nothing_found` was logged."""

    @property
    def scored(self) -> nn.Module:
        """Model that is evaluated and saved as the best: the EMA, or the model itself without EMA."""
        return self.model if self.ema is None else self.ema.module

    def state_dict(self, facts: RunFacts) -> dict[str, Any]:
        """Return everything that is needed to resume the run exactly."""
        return {
            "progress": vars(self.progress).copy(),
            "seed": facts.seed,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "distillation": (
                self.distillation.state_dict() if self.distillation else None
            ),
            "guard": {
                "in_a_row": self.guard.in_a_row,
                "in_epoch": self.guard.in_epoch,
            },
            "best": self.best.state_dict(),
            "first_loss": self.first_loss,
            "explained": self.explained,
            "unreadable": self.train_data.unreadable_images(),
            "data": facts.identity,
            "meta": {
                "classes": facts.classes,
                "config": facts.config_text,
                "bit_depth": facts.bit_depth,
                **facts.provenance,
            },
            "world_size": world_size(),
            "effective_batch_size": facts.batch_size,
            "meter": self.meter.state_dict() if self.meter else None,
        }

    def load_state_dict(
        self, state: Mapping[str, Any], facts: RunFacts, source: Path
    ) -> None:
        """Restore the state from `state_dict`.

        Args:
            state: state that passed `state_schema.check_state`.
            facts: facts of this run.
            source: file from which the state was read.

        Raises:
            CheckpointError: if the state does not fit the model, its optimizer or its EMA.
        """
        load_strictly(
            self.model, WeightFile(source, state["model"], state["meta"])
        )
        self._load_average(state["ema"])
        _load_distillation(self.distillation, state.get("distillation"), source)
        _load_optimizer(self.optimizer, state["optimizer"], source)
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.guard.in_a_row = state["guard"]["in_a_row"]
        self.guard.in_epoch = state["guard"]["in_epoch"]
        self.best.load_state_dict(state["best"])
        self.first_loss = state.get("first_loss")
        self.explained = state.get("explained", False)
        _remember_unreadable(self.train_data, state.get("unreadable") or [])
        saved_batch_size = state.get("effective_batch_size", facts.batch_size)
        self.progress = continued_progress(
            Progress(**state["progress"]), saved_batch_size, facts.batch_size
        )
        if state["world_size"] != world_size():
            logger.warning(
                "resuming with %s, the run started with %d: each step has the same images, but "
                "random numbers inside the model differ",
                counted(world_size(), "rank"),
                state["world_size"],
            )
        device = next(self.model.parameters()).device
        self.meter = None
        if state.get("meter"):
            self.meter = EpochMeter.from_state(state["meter"], device)

    def restart_epoch(self) -> None:
        """Restart the epoch and reset the best score, because the data has changed."""
        self.progress.restart_epoch()
        self.meter = None
        if self.distillation:
            self.distillation.forget_epoch()
        self.best.forget()

    def close_epoch(
        self, metrics: Mapping[str, Any], plan: TrainingPlan
    ) -> bool:
        """Complete an epoch; return whether its score is the best so far."""
        epoch = self.progress.epoch
        weights = self.scored.state_dict()
        improved = self.best.consider(
            epoch, metrics, weights, plan.stage(epoch)
        )
        self.progress.epoch = plan.next_epoch(epoch, self.best.epoch)
        self.progress.step = 0
        if self.progress.epoch > epoch + 1:
            assert plan.patience is not None
            consequence = "stage 2 begins early"
            if plan.is_over(self.progress):
                consequence = "the run ends early"
            logger.info(
                "no better %s for %s: %s",
                self.best.metric,
                counted(plan.patience, "epoch"),
                consequence,
            )
        return improved

    def _load_average(self, state: Mapping[str, Any] | None) -> None:
        if self.ema is None:
            return
        if state is None:
            raise CheckpointError(
                "the checkpoint has no EMA weights, but use_ema is True; set use_ema=False or start a new "
                "run with -t"
            )
        average = completed(state["module"], self.ema.module)
        self.ema.load_state_dict({**state, "module": average})


def inference_checkpoint(
    model: nn.Module,
    facts: RunFacts,
    epoch: int,
    metrics: Mapping[str, Any],
    metric: str,
) -> dict[str, Any]:
    """Return the content of `best.pth`: weights and everything that `Detector.from_checkpoint` needs.

    Args:
        model: model that was evaluated.
        facts: facts of its run.
        epoch: epoch from 0.
        metrics: results of the evaluation.
        metric: name of the metric that selects the best epoch.
    """
    meta = {
        "classes": facts.classes,
        "config": facts.config_text,
        "epoch": epoch,
        "score": metrics[metric],
        "metric": metric,
        "metrics": plain(metrics),
        "threshold": metrics.get("F1_threshold"),
        "preprocessing": facts.preprocessing,
        "bit_depth": facts.bit_depth,
        "input_size": list(facts.input_size),
        **facts.provenance,
    }
    return {"model": merged_state_dict(model), "meta": meta}


def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics in a form that JSON can store: all keys are strings, also in metrics by class."""
    result = dict(metrics)
    for key, value in metrics.items():
        if isinstance(value, dict):
            result[key] = {str(name): score for name, score in value.items()}
    return result


def _remember_unreadable(data: DetectionData, images: list[int]) -> None:
    known = [index for index in images if index < len(data)]
    if known:
        data.remember_unreadable(known)


def _load_distillation(
    distillation: Distills | None,
    state: Mapping[str, Any] | None,
    source: Path,
) -> None:
    """Restore the trained parts of the distillation; both must be there, or neither."""
    if bool(distillation) != bool(state):
        found, wanted = ("has", "has none") if state else ("has no", "has one")
        raise CheckpointError(
            f"{source} {found} state of a distillation, but the configuration {wanted}; restore "
            "distillation as it was, or start a new run from its weights with -t"
        )
    if distillation and state:
        try:
            distillation.load_state_dict(state)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None


def _load_optimizer(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], source: Path
) -> None:
    """Restore the moments; group settings stay as configured, since --override may change them."""
    configured_groups = []
    parameters = []
    for group in optimizer.param_groups:
        settings = dict(group)
        parameters += settings.pop("params")
        configured_groups.append(settings)
    try:
        optimizer.load_state_dict(dict(state))
        check_optimizer_state(source, state, parameters)
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{source} was written with other parameter groups: {error}; restore optimizer.params, LoRA and "
            "the backbone's phases as they were, or start a new run from its weights with -t"
        ) from None
    for group, configured in zip(optimizer.param_groups, configured_groups):
        parameters_of_group = group["params"]
        group.clear()
        group.update(configured, params=parameters_of_group)
        group.setdefault("initial_lr", group["lr"])
