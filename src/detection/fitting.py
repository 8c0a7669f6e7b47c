"""Load weights from a file into a model: match the entries, add missing ones, refuse the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.counts import counted
from ..core.errors import CheckpointError
from ..core.package_configs import configs_folder
from ..runtime.finite import COMPUTED_KEYS
from ..runtime.log import logger
from .lora_weights import is_lora_factor
from .model_table import titles_of
from .published.signatures import architecture_of
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
    if ours is not None:
        file.require_class_head()
        refuse_other_model(file, own)
        weights = with_published_scale(file, weights, own)
    if theirs is not None and ours is not None and theirs != ours:
        raise CheckpointError(
            f"{file.path} has {counted(theirs, 'class', 'classes')}, the configuration has "
            f"{ours}; use -t to start from its weights with new classes"
        )
    misfits = describe_misfits(weights, own)
    if misfits:
        raise CheckpointError(f"{file.path} does not fit this model: {misfits}")
    model.load_state_dict(weights)


def refuse_other_model(file: WeightFile, own: Mapping[str, Tensor]) -> None:
    """Check that a file of a known model is not loaded into another known model.

    Args:
        file: weights to load.
        own: state dict of the model.

    Raises:
        CheckpointError: with the names of both models.
    """
    found = file.recognized
    architecture = architecture_of(own)
    if found is None or architecture in (None, found.entry.architecture):
        return
    title = titles_of(architecture)
    raise CheckpointError(
        f"{file.path} is {found.entry.title}, but the configuration describes {title}; use "
        f"{found.entry.config}, or leave -c out"
    )


def with_published_scale(
    file: WeightFile, weights: dict[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return weights with the `reg_scale` that counts, after a warning if file and configuration differ.

    The scale is a constant of an architecture, which is never trained. For a published model, the
    configuration decides; for a file of this project, the file.

    Args:
        file: source of the weights.
        weights: weights to load.
        own: state dict of the model.
    """
    different = []
    for key in _SCALES:
        theirs = weights.get(key)
        ours = own.get(key)
        if theirs is None or ours is None or theirs.shape != ours.shape:
            continue  # `describe_misfits` reports other shapes
        if not torch.equal(theirs.cpu().double(), ours.cpu().double()):
            different.append(key)
    if not different:
        return weights
    in_file = float(weights[different[0]].flatten()[0])
    configured = float(own[different[0]].flatten()[0])
    found = file.recognized
    if found is None or file.config_text is not None:
        logger.warning(
            "%s has reg_scale %g, the configuration has %g; the value of the file is used",
            file.path,
            in_file,
            configured,
        )
        return weights
    logger.warning(
        "%s has reg_scale %g, the configuration of %s has %g, which is used; if the file was trained with "
        "%g, give the configuration of its training with -c",
        file.path,
        in_file,
        found.entry.title,
        configured,
        in_file,
    )
    return weights | {key: own[key] for key in different}


_SCALES = ("decoder.reg_scale", "decoder.decoder.reg_scale")
"""Keys of the scale of distances, which share memory."""


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

    These are the tables computed for the input size, the second names of shared parameters, the batch counts
    of norms and, if the file has none, the LoRA factors. The factors are set to have no effect (`lora_up` is
    zero), because weights without factors are plain or merged.

    Args:
        weights: entries of the file.
        model: the model to load them into; it is not changed.

    Returns:
        Entries for `model.load_state_dict`. Tables of another input size, and the batch counts of norms that
        are frozen in the model's backbone, are left out.
    """
    own = model.state_dict()
    result = {}
    for key, value in weights.items():
        has_own_shape = key in own and own[key].shape == value.shape
        is_frozen_count = key not in own and _is_count_of_backbone(key)
        if has_own_shape or not (key in COMPUTED_KEYS or is_frozen_count):
            result[key] = value
    is_plain = not any(is_lora_factor(key) for key in weights)
    for key, value in own.items():
        if key in COMPUTED_KEYS:
            result.setdefault(key, value)
        elif key.endswith(_COUNT):
            result.setdefault(key, torch.zeros_like(value))
        elif is_plain and is_lora_factor(key):
            result[key] = (
                torch.zeros_like(value) if key.endswith("lora_up") else value
            )
    for names in _shared_names(model):
        present = [name for name in names if name in result]
        for name in names if present else ():
            result.setdefault(name, result[present[0]])
    return result


_COUNT = ".num_batches_tracked"
"""End of the key of a batch norm's number of batches, which does not affect its outputs."""


def _is_count_of_backbone(key: str) -> bool:
    return key.startswith("backbone.") and key.endswith(_COUNT)


def _shared_names(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that a model has under several names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def describe_loading(
    file: WeightFile, model: nn.Module, config: str | Path
) -> str:
    """Return one line that accounts for every tensor of a file that a model was loaded from.

    Args:
        file: the file.
        model: model that has its weights.
        config: configuration of the model.

    Example:
        "deim_l.pth: DEIM-L (D-FINE layout, 80 classes, configs/deim/deim_hgnetv2_l_coco.yml): 1253 tensors,
        1253 loaded"
    """
    found = file.recognized
    title = (
        found.entry.title if found else "a detector that is not in the table"
    )
    total = len(file.weights) if file.total is None else file.total
    reasons = Counter(file.dropped.values())
    used = completed(file.weights, model)
    for key in file.weights:
        if key not in used:
            reasons[_reason_against(key)] += 1
    dropped = reasons.total()
    by_class = _of_another_shape(used, model)
    parts = [counted(total, "tensor"), f"{total - dropped - by_class} loaded"]
    if by_class:
        parts.append(f"{counted(by_class, 'class tensor')} loaded by class")
    if dropped:
        listed = "; ".join(f"{count} {why}" for why, count in reasons.items())
        parts.append(f"{dropped} dropped ({listed})")
    filled = len(used.keys() - file.weights.keys())
    if filled:
        parts.append(
            f"{filled} filled in (tables, shared parameters, batch counts)"
        )
    root = configs_folder().parent
    if Path(config).is_relative_to(root):
        config = Path(config).relative_to(root)
    return (
        f"{file.path}: {title} ({file.layout} layout, {file.num_classes} classes, {config}): "
        f"{', '.join(parts)}"
    )


def _of_another_shape(weights: Mapping[str, Tensor], model: nn.Module) -> int:
    """Count the tensors that have another number of rows than in the model, because classes differ."""
    own = model.state_dict()
    return sum(
        key in own and own[key].shape != value.shape
        for key, value in weights.items()
    )


def _reason_against(key: str) -> str:
    """Return why `completed` leaves out a tensor of a file."""
    if _is_count_of_backbone(key):
        return "batch counts of norms that this configuration freezes"
    return "tables for another input size, which the model computes"


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
