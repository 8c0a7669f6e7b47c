"""Convert the tensors of published checkpoints to the keys of this project's models.

D-FINE, DEIM and RT-DETRv4 have these keys already. DEIMv2 names its backbone differently, and transformers
names everything differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...core.errors import CheckpointError
from ..transformers_layout import (
    from_transformers,
    is_transformers_layout,
    repeated_heads,
)

DFINE = "D-FINE"
DEIMV2 = "DEIMv2"
TRANSFORMERS = "transformers"

PROJECTOR = "encoder.feature_projector."
"""Start of the keys of RT-DETRv4's projection to its teacher, which only its training uses."""

_TINY_VIT = "backbone.dinov3._model."
_META_VIT = "backbone.dinov3."

_RENAMED_PARTS = (
    ("backbone.sta.", "backbone.adapter.detail."),
    ("backbone.convs.", "backbone.adapter.convs."),
    ("backbone.norms.", "backbone.adapter.norms."),
)
"""Parts of DEIMv2's adapter and their names here."""

META_TO_TIMM = (
    ("storage_tokens", "reg_token"),
    (".ls1.gamma", ".gamma_1"),
    (".ls2.gamma", ".gamma_2"),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.w3.", ".mlp.fc2."),
)
"""Parts of the keys of Meta's DINOv3 ViT and timm's names for them."""

_PROJECTION = (
    "of RT-DETRv4's projection to its teacher, which only its training uses"
)
_MASK_TOKEN = "mask token, which has no effect on a detector"
_BIAS_MASK = "masks of biases, applied to the biases"
_REPEATED = "heads of the decoder under a second name"


@dataclass(frozen=True)
class Converted:
    """Tensors of a file with the keys of this project, and what happened to the others."""

    layout: str
    """`DFINE`, `DEIMV2` or `TRANSFORMERS`."""
    weights: dict[str, Tensor]
    dropped: dict[str, str] = field(default_factory=dict)
    """Reason for each tensor of the file that is not used, by its key in the file."""


def convert(state: Mapping[str, Tensor], path: Path) -> Converted:
    """Return the tensors of a checkpoint with the keys of this project's models.

    The tensors decide about the layout. A state dict of another kind is returned unchanged.

    Args:
        state: state dict of the file.
        path: the file, for messages.

    Raises:
        CheckpointError: if a tensor cannot be represented.
    """
    if is_transformers_layout(state):
        weights, _ = from_transformers(state, path)
        repeated = dict.fromkeys(repeated_heads(state), _REPEATED)
        return Converted(TRANSFORMERS, weights, repeated)
    weights = {}
    dropped: dict[str, str] = {}
    if is_transformers_layout(state):
        for key in repeated_heads(state):
            dropped[key] = "a repetition of a head of the decoder"
        weights, _ = from_transformers(state, path)
        return Converted(TRANSFORMERS, weights, dropped)
    for key, value in state.items():
        if key.startswith(PROJECTOR):
            dropped[key] = _PROJECTION
        else:
            weights[key] = value
    if any(key.startswith(_META_VIT) for key in weights):
        weights = _convert_backbone(weights, dropped, path)
        return Converted(DEIMV2, weights, dropped)
    has_rms_norms = "decoder.decoder.layers.0.norm1.scale" in weights
    layout = DEIMV2 if has_rms_norms else DFINE
    return Converted(layout, weights, dropped)


def _convert_backbone(
    state: Mapping[str, Tensor], dropped: dict[str, str], path: Path
) -> dict[str, Tensor]:
    """Rename the ViT and the adapter of DEIMv2; add the tensors that are not used to `dropped`."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith(".mask_token"):
            dropped[key] = _MASK_TOKEN
        elif key.endswith(".bias_mask"):
            dropped[key] = _BIAS_MASK
        elif key.startswith(_TINY_VIT):
            name = key.removeprefix(_TINY_VIT)
            result[f"backbone.vit.{_timm_name(name)}"] = value
        elif key.startswith(_META_VIT):
            name = f"backbone.vit.{_timm_name(key.removeprefix(_META_VIT))}"
            if name.endswith(".attn.qkv.bias"):
                result |= _split_bias(key, name, state, path)
            else:
                result[name] = value
        else:
            for old, new in _RENAMED_PARTS:
                if key.startswith(old):
                    key = new + key.removeprefix(old)
            result[key] = value
    return result


def _timm_name(key: str) -> str:
    """Return timm's name of a tensor of a ViT."""
    for old, new in META_TO_TIMM:
        key = key.replace(old, new)
    return key.replace("rope_embed.periods", "rope.periods")


def _split_bias(
    key: str, name: str, state: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Return the query and value biases of a fused bias `[3 * D]`, after applying its mask.

    Masked values may be NaN.

    Raises:
        CheckpointError: if the third of the key is not zero, because the model has no place for it.
    """
    bias = state[key]
    mask = state.get(f"{key}_mask")
    if mask is not None:
        bias = torch.where(mask == 0, torch.zeros_like(bias), bias * mask)
    query, of_key, value = bias.chunk(3)
    if bool((of_key != 0).any()):
        raise CheckpointError(
            f"{path}: {key} has key biases that are not zero, but a DINOv3 ViT has none; this is not a "
            "published DEIMv2-L or X"
        )
    return {
        name.replace("qkv.bias", "q_bias"): query.clone(),
        name.replace("qkv.bias", "v_bias"): value.clone(),
    }
