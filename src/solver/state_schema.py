"""Check the parts of a `last.pth` before they are used, so that a damaged file gives one clear error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..core.errors import CheckpointError


def check_state(path: Path, state: Mapping[str, Any]) -> None:
    """Check that a training state has all parts and that each has the right type.

    Args:
        path: file of the state, used in messages.
        state: content of the file.

    Raises:
        CheckpointError: if a part is missing or has a wrong type; the message names the first one.
    """
    for key, is_right in _PARTS.items():
        if key not in state:
            raise CheckpointError(
                f"{path}: the training state has no {key}; the file is damaged or incomplete"
            )
        if not is_right(state[key]):
            raise CheckpointError(
                f"{path}: {key} of the training state is damaged: {_shown(state[key])}"
            )
    for key, is_right in _OPTIONAL_PARTS.items():
        if state.get(key) is not None and not is_right(state[key]):
            raise CheckpointError(
                f"{path}: {key} of the training state is damaged: {_shown(state[key])}"
            )


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


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_progress(value: Any) -> bool:
    if not isinstance(value, dict) or not {"epoch", "step"} <= value.keys():
        return False
    return all(map(_is_count, value.values()))


def _are_weights(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(isinstance(tensor, Tensor) for tensor in value.values())


def _is_average(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    return _are_weights(value.get("module")) and _is_count(value.get("updates"))


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("state"), dict):
        return False
    groups = value.get("param_groups")
    if not isinstance(groups, list):
        return False
    return all(map(_is_group, groups))


def _is_group(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("params"), list)


def _is_guard(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return _is_count(value.get("in_a_row")) and _is_count(value.get("in_epoch"))


def _is_best(value: Any) -> bool:
    required = {"score", "epoch", "stage_one_weights"}
    if not isinstance(value, dict) or not required <= value.keys():
        return False
    if value["score"] is not None and not _is_finite(value["score"]):
        return False
    epoch = value["epoch"]
    if epoch is not None and not _is_count(epoch):
        return False
    return _are_weights(value["stage_one_weights"])


def _is_meta(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    has_classes = isinstance(value.get("classes"), list)
    return has_classes and isinstance(value.get("config"), str)


def _is_data(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_identity, value.values()))


def _is_identity(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    names = value.get("names")
    labels = value.get("labels")
    if not _are_digests(names) or not _are_digests(labels):
        return False
    has_classes = isinstance(value.get("classes"), list | tuple)
    return has_classes and names.shape == labels.shape


def _are_digests(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dtype == torch.int64


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)[:80]


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
"""Required parts of a training state, each with the function that checks it."""

_OPTIONAL_PARTS: dict[str, Callable[[Any], bool]] = {
    "first_loss": lambda value: isinstance(value, int | float),
    "explained": lambda value: isinstance(value, bool),
    "unreadable": lambda value: (
        isinstance(value, list) and all(map(_is_count, value))
    ),
    "data": _is_data,
    "effective_batch_size": lambda value: _is_count(value) and value > 0,
    "scaler": lambda value: isinstance(value, dict),
    "meter": lambda value: isinstance(value, dict),
}
"""Parts that may be missing or None, each with the function that checks it."""
