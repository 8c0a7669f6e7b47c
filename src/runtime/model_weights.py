"""Weights of a whole detector as they stand in checkpoints, ours or other people's, and how they meet a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.contracts import Adapted, DetectionData
from ..core.errors import CheckpointError, NumericsError
from .finite import COMPUTED_KEYS, first_non_finite
from .weight_files import checked_path, read_tensor_file

LORA_KEYS = (".lora_down", ".lora_up")
"""Ends of the keys of LoRA factors (`src/nn/lora.py`)."""


LISTED = 20
"""Classes that a message names."""


@dataclass(frozen=True)
class WeightFile:
    """Weights from a file of ours or of D-FINE's, with what it says about itself."""

    path: Path
    weights: dict[str, Tensor]
    meta: dict[str, Any]
    """`classes`, `config`, `score` ...; empty for a file of D-FINE's."""

    @property
    def classes(self) -> list[dict[str, Any]] | None:
        """Id and name of each label, or None if the file does not say."""
        return self.meta.get("classes")


def read_weights(path: str | Path) -> WeightFile:
    """Read the weights to evaluate or start from: the average if there is one, else the model.

    Raises:
        CheckpointError: if the file is damaged or holds no weights.
        NumericsError: if a weight is not finite.
    """
    path = checked_path(path)
    content = read_tensor_file(path)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a checkpoint with 'model' or 'ema'"
        )
    ema = content.get("ema")
    weights = ema.get("module") if isinstance(ema, dict) else None
    weights = weights or content.get("model") or content
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(value, Tensor) for value in weights.values())
    ):
        raise CheckpointError(
            f"{path} has none of the keys 'model' and 'ema' that a checkpoint has; it has {', '.join(map(str, list(content)[:8]))}"
        )
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    refuse_non_finite(path, weights)
    return WeightFile(path, weights, content.get("meta") or {})


def refuse_non_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Look for NaN and infinity in weights.

    Raises:
        NumericsError: with the first tensor that has one.
    """
    if key := first_non_finite(weights):
        raise NumericsError(
            f"{path}: tensor {key} holds values that are not finite; these weights cannot be used"
        )


def load_strictly(model: nn.Module, file: WeightFile) -> None:
    """Fill a model, every key accounted for; to a model with LoRA, a file without it brings no change.

    Raises:
        CheckpointError: with the keys that are missing, unexpected or of another shape; a differing number of
            classes is named as such.
        NumericsError: if a weight is not finite.
    """
    refuse_non_finite(file.path, file.weights)
    weights, own = completed(file.weights, model), model.state_dict()
    refuse_factors(file, own)
    theirs, ours = class_count(weights), class_count(own)
    if theirs != ours and None not in (theirs, ours):
        raise CheckpointError(
            f"{file.path} has {theirs} classes, the configuration has {ours}; use -t to start from its weights with new classes"
        )
    if faults := describe_misfits(weights, own):
        raise CheckpointError(f"{file.path} does not fit this model: {faults}")
    model.load_state_dict(weights)


def refuse_factors(file: WeightFile, own: Mapping[str, Tensor]) -> None:
    """Make sure that a model without LoRA does not get a file whose change is not folded in.

    Raises:
        CheckpointError: with what the file is, and what to take in its place.
    """
    factors = [key for key in file.weights if key.endswith(LORA_KEYS)]
    if factors and not any(key.endswith(LORA_KEYS) for key in own):
        rank = next((len(file.weights[key]) for key in factors if key.endswith(".lora_down")), "?")
        raise CheckpointError(
            f"{file.path} is the state of a run with LoRA ({len(factors)} factors of rank {rank}), this model has none; take that run's "
            f"best.pth, whose weights are plain, or set DINOv3Backbone.lora_rank={rank}"
        )


def completed(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Take from the model what a file need not hold: computed tables of its input size and, if the file has none, LoRA factors.

    Those become "no change" (`lora_up` is zero): the file's weights are plain or have theirs folded in.
    """
    own = model.state_dict()
    result = {
        k: v for k, v in weights.items() if k not in COMPUTED_KEYS or (k in own and own[k].shape == v.shape)
    }
    plain = not any(key.endswith(LORA_KEYS) for key in weights)
    for key, value in own.items():
        if key in COMPUTED_KEYS:
            result.setdefault(key, value)
        elif plain and key.endswith(LORA_KEYS):
            result[key] = torch.zeros_like(value) if key.endswith(".lora_up") else value
    return result


@torch.no_grad()
def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with every LoRA change folded into its weight: keys and shapes are those without LoRA.

    The module stays as it is; entries that LoRA does not change are not copied.
    """
    state = module.state_dict()
    for name, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, Adapted):
            prefix = f"{name}." if name else ""
            state[f"{prefix}weight"] = layer.merged_weight()
            for factor in LORA_KEYS:
                del state[name + factor if name else factor[1:]]
    return state


def class_count(weights: dict[str, Tensor]) -> int | None:
    """Return the rows of the decoder's class head, or None if there is none."""
    head = next(
        (
            v
            for k, v in sorted(weights.items())
            if k.startswith("decoder.dec_score_head.") and k.endswith(".bias")
        ),
        None,
    )
    return None if head is None else len(head)


def find_labels(classes: Sequence[Mapping[str, Any]], path: Path, data: DetectionData) -> list[int]:
    """Return by which label a checkpoint knows each category of a data set: by name, or by id and name where names repeat.

    Args:
        classes: `{"id": ..., "name": ...}` of each label.
        path: of the checkpoint, for messages.
        data: the data set.

    Raises:
        CheckpointError: with the categories that it does not know.
    """
    by_name = {entry["name"]: label for label, entry in reversed(list(enumerate(classes)))}
    by_both = {(entry["id"], entry["name"]): label for label, entry in enumerate(classes)}
    categories = list(zip(data.category_ids, data.class_names))
    unknown = [f"{name} (id {category})" for category, name in categories if name not in by_name]
    if unknown:
        raise CheckpointError(
            f"{data.ann_file} has classes that {path} was not trained with: {', '.join(unknown[:LISTED])}; "
            f"it knows {', '.join(entry['name'] for entry in classes[:LISTED])}; use -t to start a new run from its weights"
        )
    return [by_both.get((category, name), by_name[name]) for category, name in categories]


def describe_misfits(weights: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """Return "2 missing (a, b), 1 of another shape (c [3] not [4])", or "" if everything fits."""
    shapes = [
        f"{k} {list(weights[k].shape)} not {list(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    parts = []
    for kind, keys in (
        ("missing", [k for k in own if k not in weights]),
        ("unexpected", [k for k in weights if k not in own]),
        ("of another shape", shapes),
    ):
        if keys:
            parts.append(f"{len(keys)} {kind} ({', '.join(keys[:10])}{', ...' if len(keys) > 10 else ''})")
    return ", ".join(parts)
