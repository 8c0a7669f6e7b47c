"""What a `last.pth` must hold: every part is looked at before it is used, so that a damaged file is refused in one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import CheckpointError


def check_state(path: Path, state: Mapping[str, Any]) -> None:
    """Make sure that a training state has all its parts, each of the right kind.

    Args:
        path: the file, for messages.
        state: its content.

    Raises:
        CheckpointError: with the first part that is missing or wrong.
    """
    for key, is_right in _PARTS.items():
        if key not in state:
            raise CheckpointError(
                f"{path}: the training state has no {key}; the file is damaged or incomplete"
            )
        if not is_right(state[key]):
            raise CheckpointError(f"{path}: {key} of the training state is damaged: {_shown(state[key])}")
    for key, is_right in _OPTIONAL_PARTS.items():
        if state.get(key) is not None and not is_right(state[key]):
            raise CheckpointError(f"{path}: {key} of the training state is damaged: {_shown(state[key])}")


def check_optimizer_state(path: str | Path, state: Mapping[str, Any], parameters: list[Tensor]) -> None:
    """Make sure that an optimizer's tensors have the shapes of the parameters that they belong to: kernels do not look.

    Args:
        path: the file, for messages.
        state: as of `Optimizer.state_dict`.
        parameters: of the optimizer, in order.

    Raises:
        CheckpointError: with the first tensor of another shape.
    """
    ids = [number for group in state["param_groups"] for number in group["params"]]
    for number, parameter in zip(ids, parameters):
        for name, value in state["state"].get(number, {}).items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise CheckpointError(
                    f"{path}: {name} of the optimizer's parameter {number} has the shape {list(value.shape)}, expected "
                    f"{list(parameter.shape)}; start a new run from the weights with -t"
                )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_progress(value: Any) -> bool:
    return (
        isinstance(value, dict) and {"epoch", "step"} <= value.keys() and all(map(_is_count, value.values()))
    )


def _are_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(tensor, Tensor) for tensor in value.values())


def _is_average(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and _are_weights(value.get("module")) and _is_count(value.get("updates"))
    )


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("state"), dict):
        return False
    groups = value.get("param_groups")
    return isinstance(groups, list) and all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    )


def _is_guard(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("in_a_row")) and _is_count(value.get("in_epoch"))


def _is_best(value: Any) -> bool:
    if not isinstance(value, dict) or not {"score", "epoch", "stage_one_weights"} <= value.keys():
        return False
    score, epoch = value["score"], value["epoch"]
    is_score = score is None or (isinstance(score, int | float) and math.isfinite(score))
    return is_score and (epoch is None or _is_count(epoch)) and _are_weights(value["stage_one_weights"])


def _is_meta(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("config"), str)
        and isinstance(value.get("classes"), list)
    )


def _is_data(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(part, dict)
        and all(
            isinstance(part.get(key), Tensor) and part[key].dtype == torch.int64
            for key in ("names", "labels")
        )
        and part["names"].shape == part["labels"].shape
        and isinstance(part.get("classes"), list | tuple)
        for part in value.values()
    )


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, dict | list) else f"a {type(value).__name__} of {len(value)}"
    return text[:80]


_PARTS: dict[str, Callable[[Any], bool]] = {
    "progress": _is_progress,
    "seed": _is_count,
    "model": _are_weights,
    "ema": _is_average,
    "optimizer": _is_optimizer,
    "guard": _is_guard,
    "best": _is_best,
    "meta": _is_meta,
    "world_size": lambda value: _is_count(value) and value > 0,
}
"""What every state has, each with what tells whether it is right."""

_OPTIONAL_PARTS: dict[str, Callable[[Any], bool]] = {
    "first_loss": lambda value: isinstance(value, int | float),
    "explained": lambda value: isinstance(value, bool),
    "unreadable": lambda value: isinstance(value, list) and all(map(_is_count, value)),
    "data": _is_data,
    "effective_batch_size": lambda value: _is_count(value) and value > 0,
    "scaler": lambda value: isinstance(value, dict),
    "meter": lambda value: isinstance(value, dict),
}
"""What some states have."""
