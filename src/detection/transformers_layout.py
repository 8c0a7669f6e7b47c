"""The names of D-FINE's tensors in the package transformers (`DFineForObjectDetection`), and in our models.

The package is not needed to convert weights. The names are those of its files. Its models in memory have a
few other names, which are also read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import CheckpointError
from ..runtime.finite import COMPUTED_KEYS
from .transformers_config import check_settings, config_for

MARKS = (
    "model.backbone.model.embedder.stem1.convolution.weight",
    "model.encoder_input_proj.0.0.weight",
    "model.decoder.pre_bbox_head.layers.0.weight",
)
"""Keys that all files of `DFineForObjectDetection` have, and no file of another model."""

MAX_LISTED_KEYS = 5
"""Maximum number of keys in a message."""

_PAIRS = (
    ("backbone.stem.*.conv", "model.backbone.model.embedder.*.convolution"),
    ("backbone.stem.*.bn", "model.backbone.model.embedder.*.normalization"),
    ("backbone.stem.*.lab", "model.backbone.model.embedder.*.lab"),
    (
        "backbone.stages.*.conv",
        "model.backbone.model.encoder.stages.*.convolution",
    ),
    (
        "backbone.stages.*.bn",
        "model.backbone.model.encoder.stages.*.normalization",
    ),
    ("backbone.stages.*.lab", "model.backbone.model.encoder.stages.*.lab"),
    ("encoder.input_proj.#.conv", "model.encoder_input_proj.#.0"),
    ("encoder.input_proj.#.norm", "model.encoder_input_proj.#.1"),
    (
        "encoder.encoder.#.layers.#.norm1",
        "model.encoder.encoder.#.layers.#.self_attn_layer_norm",
    ),
    (
        "encoder.encoder.#.layers.#.norm2",
        "model.encoder.encoder.#.layers.#.final_layer_norm",
    ),
    (
        "encoder.encoder.#.layers.#.linear1",
        "model.encoder.encoder.#.layers.#.fc1",
    ),
    (
        "encoder.encoder.#.layers.#.linear2",
        "model.encoder.encoder.#.layers.#.fc2",
    ),
    (
        "encoder.encoder.#.layers.#.self_attn",
        "model.encoder.encoder.#.layers.#.self_attn",
    ),
    ("encoder.lateral_convs", "model.encoder.lateral_convs"),
    ("encoder.fpn_blocks.#.cv1", "model.encoder.fpn_blocks.#.conv1"),
    ("encoder.fpn_blocks.#.cv2.0", "model.encoder.fpn_blocks.#.csp_rep1"),
    ("encoder.fpn_blocks.#.cv2.1", "model.encoder.fpn_blocks.#.conv2"),
    ("encoder.fpn_blocks.#.cv3.0", "model.encoder.fpn_blocks.#.csp_rep2"),
    ("encoder.fpn_blocks.#.cv3.1", "model.encoder.fpn_blocks.#.conv3"),
    ("encoder.fpn_blocks.#.cv4", "model.encoder.fpn_blocks.#.conv4"),
    ("encoder.pan_blocks.#.cv1", "model.encoder.pan_blocks.#.conv1"),
    ("encoder.pan_blocks.#.cv2.0", "model.encoder.pan_blocks.#.csp_rep1"),
    ("encoder.pan_blocks.#.cv2.1", "model.encoder.pan_blocks.#.conv2"),
    ("encoder.pan_blocks.#.cv3.0", "model.encoder.pan_blocks.#.csp_rep2"),
    ("encoder.pan_blocks.#.cv3.1", "model.encoder.pan_blocks.#.conv3"),
    ("encoder.pan_blocks.#.cv4", "model.encoder.pan_blocks.#.conv4"),
    (
        "encoder.downsample_convs.#.0.cv1",
        "model.encoder.downsample_convs.#.conv1",
    ),
    (
        "encoder.downsample_convs.#.0.cv2",
        "model.encoder.downsample_convs.#.conv2",
    ),
    ("decoder.input_proj.#.conv", "model.decoder_input_proj.#.0"),
    ("decoder.input_proj.#.norm", "model.decoder_input_proj.#.1"),
    ("decoder.enc_output.proj", "model.enc_output.0"),
    ("decoder.enc_output.norm", "model.enc_output.1"),
    ("decoder.enc_score_head", "model.enc_score_head"),
    ("decoder.enc_bbox_head", "model.enc_bbox_head"),
    ("decoder.denoising_class_embed", "model.denoising_class_embed"),
    ("decoder.query_pos_head", "model.decoder.query_pos_head"),
    ("decoder.pre_bbox_head", "model.decoder.pre_bbox_head"),
    ("decoder.dec_score_head", "model.decoder.class_embed"),
    ("decoder.dec_bbox_head", "model.decoder.bbox_embed"),
    ("decoder.decoder.up", "model.decoder.up"),
    ("decoder.decoder.reg_scale", "model.decoder.reg_scale"),
    ("decoder.decoder.lqe_layers", "model.decoder.lqe_layers"),
    (
        "decoder.decoder.layers.#.norm1",
        "model.decoder.layers.#.self_attn_layer_norm",
    ),
    (
        "decoder.decoder.layers.#.norm3",
        "model.decoder.layers.#.final_layer_norm",
    ),
    ("decoder.decoder.layers.#.linear1", "model.decoder.layers.#.fc1"),
    ("decoder.decoder.layers.#.linear2", "model.decoder.layers.#.fc2"),
    (
        "decoder.decoder.layers.#.cross_attn",
        "model.decoder.layers.#.encoder_attn",
    ),
    ("decoder.decoder.layers.#.self_attn", "model.decoder.layers.#.self_attn"),
    ("decoder.decoder.layers.#.gateway", "model.decoder.layers.#.gateway"),
)
"""First parts of our keys and of transformers' keys; the rest of a key is the same.

`#` stands for a number and `*` for any text.
"""

_IN_MEMORY = (
    (re.compile(r"\.self_attn\.o_proj\."), ".self_attn.out_proj."),
    (re.compile(r"(layers\.\d+)\.mlp\.layers\.0\."), r"\1.fc1."),
    (re.compile(r"(layers\.\d+)\.mlp\.layers\.1\."), r"\1.fc2."),
    (re.compile(r"^model\.encoder\.aifi\."), "model.encoder.encoder."),
)
"""Names of models in memory that differ from those of files, and the latter."""

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
        named[_name_in_file(key)] = value
    result: dict[str, Tensor] = {}
    second_heads: dict[str, Tensor] = {}
    unknown = []
    for key, value in named.items():
        if _SECOND_HEAD.match(key):
            second_heads[f"model.decoder.{key}"] = value
            continue
        renamed = _renamed(key, _to_ours())
        if renamed is None:
            unknown.append(key)
        else:
            result[renamed] = value
    if unknown:
        raise CheckpointError(
            f"{path} has {len(unknown)} tensors that transformers' D-FINE does not have "
            f"({_listed(unknown)}); only files of DFineForObjectDetection can be converted"
        )
    remarks = []
    repeated = repeated_heads(state)
    if repeated:
        remarks.append(
            f"{len(repeated)} tensors that repeat the heads of the decoder"
        )
    for key, value in second_heads.items():
        renamed = _renamed(key, _to_ours())
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
        renamed = _renamed(attention or key, _to_theirs())
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


def _name_in_file(key: str) -> str:
    """Return the name that a tensor of a model in memory has in files."""
    for pattern, name in _IN_MEMORY:
        key = pattern.sub(name, key)
    return key


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


def _renamed(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    """Return the new name of a tensor, or None if no rule fits."""
    for pattern, name in rules:
        found = pattern.fullmatch(key)
        if found:
            return found.expand(name)
    return None


@cache
def _to_ours() -> list[tuple[re.Pattern[str], str]]:
    return [_rule(theirs, ours) for ours, theirs in _PAIRS]


@cache
def _to_theirs() -> list[tuple[re.Pattern[str], str]]:
    return [_rule(ours, theirs) for ours, theirs in _PAIRS]


def _rule(old: str, new: str) -> tuple[re.Pattern[str], str]:
    """Return a pattern for keys that begin with `old`, and the template of their new names."""
    pattern = re.escape(old).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)")
    parts = re.split("[#*]", new)
    template = parts[0]
    for index, part in enumerate(parts[1:], start=1):
        template += rf"\g<{index}>{part}"
    return re.compile(pattern + r"(\..+)?"), rf"{template}\g<{len(parts)}>"


def _listed(keys: list[str]) -> str:
    """Return the first keys as one text."""
    text = ", ".join(keys[:MAX_LISTED_KEYS])
    return f"{text}, ..." if len(keys) > MAX_LISTED_KEYS else text
