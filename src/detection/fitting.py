"""Weights from a file in a model: which entries fit, which are completed, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError
from ..runtime.finite import COMPUTED_KEYS
from .lora_weights import is_lora_factor
from .weight_file import WeightFile, class_count, refuse_non_finite

MAX_LISTED_KEYS = 10
"""Keys of a kind that a message names."""


def load_strictly(model: nn.Module, file: WeightFile) -> None:
    """Fill a model, every key accounted for; to a model with LoRA, a file without it brings no change.

    Raises:
        CheckpointError: with the keys that are missing, unexpected or of another shape; a differing number of
            classes is named as such.
        NumericsError: if a weight is not finite.
    """
    refuse_non_finite(file.path, file.weights)
    weights = completed(file.weights, model)
    own = model.state_dict()
    refuse_factors(file, own)
    theirs = file.num_classes
    ours = class_count(own)
    if theirs != ours and None not in (theirs, ours):
        raise CheckpointError(
            f"{file.path} has {theirs} classes, the configuration has {ours}; use -t to start from its "
            "weights with new classes"
        )
    misfits = describe_misfits(weights, own)
    if misfits:
        raise CheckpointError(f"{file.path} does not fit this model: {misfits}")
    model.load_state_dict(weights)


def refuse_factors(file: WeightFile, own: Mapping[str, Tensor]) -> None:
    """Make sure that a model without LoRA does not get a file whose change is not folded in.

    Args:
        file: the weights.
        own: state dict of the model.

    Raises:
        CheckpointError: with what the file is, and what to take in its place.
    """
    factors = [key for key in file.weights if is_lora_factor(key)]
    if factors and not any(is_lora_factor(key) for key in own):
        rank = next((len(file.weights[key]) for key in factors if key.endswith("lora_down")), "?")
        raise CheckpointError(
            f"{file.path} is the state of a run with LoRA ({len(factors)} factors of rank {rank}), this "
            "model has none; take that run's "
            f"best.pth, whose weights are plain, or set DINOv3Backbone.lora_rank={rank}"
        )


def completed(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Take from the model what a file need not hold.

    This is computed tables of its input size and, if the file has none, LoRA factors. Those become "no
    change" (`lora_up` is zero): the file's weights are plain or have theirs folded in.

    Args:
        weights: entries of the file.
        model: the model that they are for; it stays as it is.

    Returns:
        Entries for `model.load_state_dict`; tables of another input size are left out.
    """
    own = model.state_dict()
    result = {
        key: value
        for key, value in weights.items()
        if key not in COMPUTED_KEYS or (key in own and own[key].shape == value.shape)
    }
    is_plain = not any(is_lora_factor(key) for key in weights)
    for key, value in own.items():
        if key in COMPUTED_KEYS:
            result.setdefault(key, value)
        elif is_plain and is_lora_factor(key):
            result[key] = torch.zeros_like(value) if key.endswith("lora_up") else value
    return result


def describe_misfits(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Return "2 missing (a, b), 1 of another shape (c [3] not [4])", or "" if everything fits.

    Args:
        weights: entries of a file.
        own: state dict of the model that they are for.
    """
    shapes = [
        f"{key} {list(weights[key].shape)} not {list(value.shape)}"
        for key, value in own.items()
        if key in weights and weights[key].shape != value.shape
    ]
    kinds = {
        "missing": [key for key in own if key not in weights],
        "unexpected": [key for key in weights if key not in own],
        "of another shape": shapes,
    }
    parts = []
    for kind, keys in kinds.items():
        if keys:
            more = ", ..." if len(keys) > MAX_LISTED_KEYS else ""
            parts.append(f"{len(keys)} {kind} ({', '.join(keys[:MAX_LISTED_KEYS])}{more})")
    return ", ".join(parts)
