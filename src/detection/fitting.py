"""Load weights from a file into a model: match the entries, add missing ones, refuse the others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError
from ..runtime.finite import COMPUTED_KEYS
from .lora_weights import is_lora_factor
from .weight_file import WeightFile, class_count, refuse_non_finite

MAX_LISTED_KEYS = 10
"""Maximum number of keys of a kind in a message."""


def load_strictly(model: nn.Module, file: WeightFile) -> None:
    """Load weights into a model; all keys must match, except that LoRA factors may be missing in the file.

    Raises:
        CheckpointError: with the keys that are missing, unexpected or of another shape; a different number of
            classes has its own message.
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
    """Check that a model without LoRA does not get a file with LoRA factors that are not merged.

    Args:
        file: weights to load.
        own: state dict of the model.

    Raises:
        CheckpointError: with the kind of the file, and the file or setting to use instead.
    """
    factors = [key for key in file.weights if is_lora_factor(key)]
    if factors and not any(is_lora_factor(key) for key in own):
        ranks = [
            len(file.weights[key])
            for key in factors
            if key.endswith("lora_down")
        ]
        rank = ranks[0] if ranks else "?"
        raise CheckpointError(
            f"{file.path} is the state of a run with LoRA ({len(factors)} factors of rank {rank}), but this "
            "model has no LoRA; use that run's best.pth, whose weights are merged, or set "
            f"DINOv3Backbone.lora_rank={rank}"
        )


def completed(
    weights: Mapping[str, Tensor], model: nn.Module
) -> dict[str, Tensor]:
    """Add entries that a file may lack, from the model.

    These are the tables computed for the input size and, if the file has none, the LoRA factors. The factors
    are set to have no effect (`lora_up` is zero), because weights without factors are plain or merged.

    Args:
        weights: entries of the file.
        model: the model to load them into; it is not changed.

    Returns:
        Entries for `model.load_state_dict`; tables of another input size are left out.
    """
    own = model.state_dict()
    result = {}
    for key, value in weights.items():
        has_own_shape = key in own and own[key].shape == value.shape
        if has_own_shape or key not in COMPUTED_KEYS:
            result[key] = value
    is_plain = not any(is_lora_factor(key) for key in weights)
    for key, value in own.items():
        if key in COMPUTED_KEYS:
            result.setdefault(key, value)
        elif is_plain and is_lora_factor(key):
            result[key] = (
                torch.zeros_like(value) if key.endswith("lora_up") else value
            )
    return result


def describe_misfits(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> str:
    """Return "2 missing (a, b), 1 of another shape (c [3] not [4])", or "" if everything fits.

    Args:
        weights: entries of the file.
        own: state dict of the model to load them into.
    """
    shapes = []
    for key, value in own.items():
        if key in weights and weights[key].shape != value.shape:
            shapes.append(
                f"{key} {list(weights[key].shape)} not {list(value.shape)}"
            )
    kinds = {
        "missing": [key for key in own if key not in weights],
        "unexpected": [key for key in weights if key not in own],
        "of another shape": shapes,
    }
    parts = []
    for kind, keys in kinds.items():
        if not keys:
            continue
        listed = ", ".join(keys[:MAX_LISTED_KEYS])
        if len(keys) > MAX_LISTED_KEYS:
            listed += ", ..."
        parts.append(f"{len(keys)} {kind} ({listed})")
    return ", ".join(parts)
