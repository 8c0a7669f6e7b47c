"""Schema of `last.pth`, so that a damaged or changed file gives one clear error before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.schemas import Count, Finite, Positive, Text, checked
from ..detection.notes import ADVICE, Notes

NotNegative = Annotated[float, Meta(ge=0, le=1e300)]
"""A finite number that is not negative."""

Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]

Weights = dict[str, Tensor]


class ProgressState(Struct):
    """Values of `plan.Progress`."""

    epoch: Count
    step: Count
    total_steps: Count = 0

    def __post_init__(self) -> None:
        if self.total_steps < self.step:
            raise ValueError("Expected `total_steps >= step`")


class AverageState(Struct):
    """State of `optim.ema.ModelEMA`; official checkpoints have only the first two entries."""

    module: Weights
    updates: Count
    skipped: Count = 0
    decay: Annotated[float, Meta(ge=0, le=1)] | None = None
    configured_decay: Annotated[float, Meta(ge=0, le=1)] | None = None

    def __post_init__(self) -> None:
        if self.decay is None and self.configured_decay is not None:
            raise ValueError("configured_decay without decay")


class ParameterGroup(Struct):
    """A parameter group of a torch optimizer; its other settings come from the configuration."""

    params: list[Count]


class OptimizerState(Struct):
    """State of a torch optimizer."""

    state: dict[int, dict[str, Any]]
    param_groups: list[ParameterGroup]

    def __post_init__(self) -> None:
        for values in self.state.values():
            for name, value in values.items():
                if not isinstance(value, Tensor | float | int | None):
                    raise ValueError(
                        f"Expected `a tensor or a number` as {name}"
                    )


class ScalerState(Struct):
    """State of `torch.amp.GradScaler`; an empty state belongs to a disabled scaler."""

    scale: Annotated[float, Meta(gt=0, le=1e38)]
    growth_factor: Annotated[float, Meta(gt=1, le=1e6)]
    backoff_factor: Annotated[float, Meta(gt=0, lt=1)]
    growth_interval: Positive
    growth_tracker: Count = 0


class GuardState(Struct):
    """Counters of `numerics.NumericsGuard`."""

    in_a_row: Count
    in_epoch: Count


class BestState(Struct):
    """State of `model_selection.BestModel`."""

    score: Finite | None
    epoch: Count | None
    stage_one_weights: Weights
    metric: Text | None = None


class RunNotes(Notes):
    """The notes of a training state, which always has a configuration and classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("config", "classes"):
            if getattr(self, name) is None:
                raise ValueError(f"Object missing required field `{name}`")


class IdentityState(Struct):
    """Identity of a data set (`run_identity`)."""

    names: Tensor
    labels: Tensor
    classes: list[tuple[Any, Any]]

    def __post_init__(self) -> None:
        for digests in (self.names, self.labels):
            if digests.dtype != torch.int64 or digests.ndim != 1:
                raise ValueError("Expected `digests [N] of int64`")
        if self.names.shape != self.labels.shape:
            raise ValueError("Expected `as many names as labels`")


class MeterState(Struct):
    """State of `epoch_meter.EpochMeter`."""

    names: list[Text]
    total: Tensor | None
    steps: Count
    images: Count
    waited: NotNegative
    seconds: NotNegative
    boxes_read: Count = 0
    boxes_lost: dict[str, Count] = {}

    def __post_init__(self) -> None:
        sums = () if self.total is None else self.total.shape
        if sums != ((len(self.names),) if self.names else ()):
            raise ValueError("Expected `one sum for each name`")
        if self.names and not self.steps:
            raise ValueError("Expected `no sums without steps`")


class DistillationState(Struct):
    """State of a distillation (`core.contracts.Distills`)."""

    projector: Weights
    weight: Annotated[float, Meta(gt=0, le=1e300)] | None
    """None without a part that has a projector."""
    share_sum: NotNegative = 0.0
    share_steps: Count = 0


class TrainingState(Struct):
    """The content of `last.pth`."""

    progress: ProgressState
    seed: Seed
    model: Weights
    ema: AverageState | None
    optimizer: OptimizerState
    guard: GuardState
    best: BestState
    meta: RunNotes
    world_size: Annotated[int, Meta(ge=1, le=1_000_000)]
    scaler: dict[str, Any] | None = None
    distillation: DistillationState | None = None
    first_loss: Finite | None = None
    explained: bool | None = None
    unreadable: list[Count] | None = None
    data: dict[str, IdentityState] | None = None
    effective_batch_size: Positive | None = None
    meter: MeterState | None = None


def check_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Check that a training state has all parts, and that their types and ranges are right.

    Args:
        path: file of the state, used in messages.
        state: content of the file.

    Raises:
        CheckpointError: for the first key that is missing, has the wrong type or is out of range.
    """
    checked(state, TrainingState, file=path, part="", advice=ADVICE)
    scaler = state.get("scaler")
    if scaler:
        renamed = {
            key.removeprefix("_"): value for key, value in scaler.items()
        }
        checked(renamed, ScalerState, file=path, part="scaler", advice=ADVICE)


def check_optimizer_state(
    path: str | Path, state: Mapping[str, Any], parameters: list[Tensor]
) -> None:
    """Check that optimizer tensors have the shapes of their parameters, which fused kernels do not check.

    Args:
        path: file of the state, used in messages.
        state: result of `Optimizer.state_dict`.
        parameters: parameters of the optimizer, in order.

    Raises:
        CheckpointError: if a tensor has another shape; the message names the first one.
    """
    ids: list[int] = []
    for group in state["param_groups"]:
        ids += group["params"]
    for number, parameter in zip(ids, parameters):
        for name, value in state["state"].get(number, {}).items():
            is_scalar = not isinstance(value, Tensor) or not value.ndim
            if not is_scalar and value.shape != parameter.shape:
                raise CheckpointError(
                    f"{path}: {name} of the optimizer's parameter {number} has the shape "
                    f"{list(value.shape)}, expected {list(parameter.shape)}; start a new run from the "
                    "weights with -t"
                )
