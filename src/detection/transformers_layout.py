"""Weights of D-FINE in the layout of the package transformers (`DFineForObjectDetection`), and back.

The package is not needed to convert weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.counts import counted
from ..core.errors import CheckpointError
from ..runtime.finite import COMPUTED_KEYS
from .transformers_config import check_settings, config_for
from .transformers_names import name_in_file, our_name, their_name

MARKS = (
    "model.backbone.model.embedder.stem1.convolution.weight",
    "model.encoder_input_proj.0.0.weight",
    "model.decoder.pre_bbox_head.layers.0.weight",
)
"""Keys that all files of `DFineForObjectDetection` have, and no file of another model."""

MAX_LISTED_KEYS = 5
"""Maximum number of keys in a message."""

_SECOND_HEAD = re.compile(r"(class_embed|bbox_embed)\.")
"""Begin of the names of the heads outside the decoder, which are the decoder's heads again."""

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""Parts of our `in_proj` in their order."""

_SHARED = ("up", "reg_scale")
"""Entries that our decoder has under two names, `decoder.*` and `decoder.decoder.*`."""


def is_transformers_layout(state: Mapping[str, Any]) -> bool:
    """Return whether weights are those of transformers' `DFineForObjectDetection`.

    Args:
        state: tensors by name.
    """
    return all(key in state for key in MARKS)


def repeated_heads(state: Mapping[str, Any]) -> list[str]:
    """Return the names of tensors that repeat the heads of the decoder, as models in memory have them.

    Args:
        state: tensors of transformers by name.
    """
    repeated = []
    for key in state:
        if _SECOND_HEAD.match(key) and f"model.decoder.{key}" in state:
            repeated.append(key)
    return repeated


def from_transformers(
    state: Mapping[str, Tensor], path: str | Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights of transformers under our names.

    The tables of anchors are missing in the result, because transformers computes them.

    Args:
        state: tensors by name, as in a file or in `DFineForObjectDetection.state_dict()`.
        path: file of the weights, used in messages.

    Returns:
        Tensors by name, and one remark for each group of tensors that were dropped.

    Raises:
        CheckpointError: with the tensors that D-FINE does not have.
    """
    named = {}
    for key, value in state.items():
        named[name_in_file(key)] = value
    result: dict[str, Tensor] = {}
    second_heads: dict[str, Tensor] = {}
    unknown = []
    for key, value in named.items():
        if _SECOND_HEAD.match(key):
            second_heads[f"model.decoder.{key}"] = value
            continue
        renamed = our_name(key)
        if renamed is None:
            unknown.append(key)
        else:
            result[renamed] = value
    if unknown:
        raise CheckpointError(
            f"{path} has {counted(len(unknown), 'tensor')} that transformers' D-FINE does not have "
            f"({_listed(unknown)}); only files of DFineForObjectDetection can be converted"
        )
    remarks = []
    repeated = repeated_heads(state)
    if repeated:
        remarks.append(
            f"tensors that repeat the heads of the decoder: {len(repeated)}"
        )
    for key, value in second_heads.items():
        renamed = our_name(key)
        if key not in named and renamed is not None:
            result[renamed] = value
    _join_projections(result, path)
    _add_shared(result)
    return result, remarks


def to_transformers(
    state: Mapping[str, Tensor],
    settings: Mapping[str, Any] | None = None,
    *,
    path: str | Path = "the model",
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return our weights under transformers' names, and the configuration of the model.

    Args:
        state: tensors by name, of a D-FINE model with HGNetv2.
        settings: resolved configuration of the model, for what tensors do not show; D-FINE's if omitted.
        path: file of the weights, used in messages.

    Returns:
        Tensors by name, which do not share memory with each other, and the entries of `DFineConfig` without
        the names of the classes.

    Raises:
        CheckpointError: if transformers' D-FINE does not have this architecture.
    """
    settings = settings or {}
    check_settings(state, settings, path)
    result = {}
    unknown = []
    for key, value in state.items():
        if _is_left_out(key):
            continue
        attention, _, kind = key.rpartition(".in_proj_")
        renamed = their_name(attention or key)
        if renamed is None:
            unknown.append(key)
        elif attention:
            for name, part in zip(_PROJECTIONS, value.chunk(3)):
                result[f"{renamed}.{name}.{kind}"] = part.clone()
        elif key.endswith(_SHARED):
            result[renamed] = value.float()
        else:
            result[renamed] = value.contiguous()
    if unknown:
        raise CheckpointError(
            f"{path} cannot be written for transformers: its DFineForObjectDetection has no place for "
            f"{len(unknown)} of the tensors ({_listed(unknown)}), because it only covers D-FINE with HGNetv2"
        )
    try:
        return result, config_for(state, settings, path)
    except KeyError as error:
        raise CheckpointError(
            f"{path} cannot be written for transformers: it has no tensor {error.args[0]}, which all models "
            "of D-FINE with HGNetv2 have"
        ) from None


def _is_left_out(key: str) -> bool:
    """Return whether transformers computes one of our entries, or has it once where we have it twice."""
    is_second = key in [f"decoder.{name}" for name in _SHARED]
    return is_second or key in COMPUTED_KEYS


def _join_projections(state: dict[str, Tensor], path: str | Path) -> None:
    """Replace the projections of queries, keys and values by one tensor, in place.

    Raises:
        CheckpointError: if one of the three is missing.
    """
    for key in list(state):
        attention, name, kind = key.rpartition(f".{_PROJECTIONS[0]}.")
        if not name:
            continue
        parts = []
        for projection in _PROJECTIONS:
            part = state.pop(f"{attention}.{projection}.{kind}", None)
            if part is None:
                raise CheckpointError(
                    f"{path} is incomplete: {attention} has no {projection}.{kind}; download it again"
                )
            parts.append(part)
        state[f"{attention}.in_proj_{kind}"] = torch.cat(parts)


def _add_shared(state: dict[str, Tensor]) -> None:
    """Add the second names of shared entries, in place.

    D-FINE's files have an integer as `reg_scale`, and transformers' files have a float.
    """
    for name in _SHARED:
        value = state.get(f"decoder.decoder.{name}")
        if value is None:
            continue
        if name == "reg_scale" and bool((value == value.round()).all()):
            value = value.long()
        state[f"decoder.decoder.{name}"] = value
        state[f"decoder.{name}"] = value


def _listed(keys: list[str]) -> str:
    """Return the first keys as one text."""
    text = ", ".join(keys[:MAX_LISTED_KEYS])
    return f"{text}, ..." if len(keys) > MAX_LISTED_KEYS else text
