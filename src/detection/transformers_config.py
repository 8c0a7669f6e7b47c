"""The configuration of transformers' D-FINE (`DFineConfig`) for weights and settings of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from ..core.errors import CheckpointError
from ..core.schemas import shown

STRIDES = (4, 8, 16, 32)
"""Strides of HGNetv2's stages, in pixels."""

_FIXED: dict[str, dict[str, Any]] = {
    "HybridEncoder": {
        "act": "silu",
        "fuse_op": "cat",
        "fusion_block": "gelan",
        "project_input": "always",
    },
    "DFINETransformer": {
        "activation": "relu",
        "mlp_act": "relu",
        "norm": "layer",
        "feed_forward": "mlp",
        "gateway": True,
        "query_position": "refined",
        "query_projection": True,
        "share_box_head": False,
        "learn_query_content": False,
        "query_select_method": "default",
        "layer_scale": 1,
        "eps": 1e-2,
    },
}
"""Settings for which transformers' D-FINE knows this value only; they are also the defaults of ours.

It has a setting for the activation of the feed-forward parts, but its quality heads, position head and box
heads always use ReLU.
"""

_ROLES = {
    "model": "DFINE",
    "backbone": "HGNetv2",
    "encoder": "HybridEncoder",
    "decoder": "DFINETransformer",
}
"""Classes of a model that transformers' D-FINE can be."""


def check_settings(
    state: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    path: str | Path,
) -> None:
    """Check that transformers' D-FINE has the parts and settings of a model.

    Args:
        state: our weights by name.
        settings: resolved configuration of the model; what it leaves out has D-FINE's values.
        path: file of the weights, used in messages.

    Raises:
        CheckpointError: with the first part or setting that it cannot have.
    """
    parts = {"model": settings.get("model"), **(settings.get("DFINE") or {})}
    for role, expected in _ROLES.items():
        name = parts.get(role) or expected
        if name != expected:
            _refuse(path, f"it has {expected} as {role}, not {shown(name)}")
    for part, fixed in _FIXED.items():
        given = settings.get(part) or {}
        for name, value in fixed.items():
            found = given.get(name, value)
            if found != value:
                _refuse(
                    path,
                    f"it has {part}.{name}={value} only, and this model has {shown(found)}",
                )
    num_layers = _count(state, "decoder.decoder.layers")
    decoder = settings.get("DFINETransformer") or {}
    if decoder.get("eval_idx", -1) not in (-1, num_layers - 1):
        _refuse(
            path,
            f"it uses the last decoder layer, and this model has DFINETransformer.eval_idx="
            f"{shown(decoder['eval_idx'])} of {num_layers} layers",
        )
    levels = _count(state, "encoder.input_proj")
    if _count(state, "decoder.input_proj") not in (0, levels):
        _refuse(path, "it does not add levels coarser than the encoder's maps")


def config_for(
    state: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    path: str | Path,
) -> dict[str, Any]:
    """Return the entries of `DFineConfig` that describe a model, without the names of its classes.

    The types of numbers are those that `DFineConfig` requires.

    Args:
        state: our weights by name.
        settings: resolved configuration of the model, after `check_settings`.
        path: file of the weights, used in messages.

    Raises:
        CheckpointError: if the encoder does not read the last stages of the backbone.
        KeyError: with the first tensor that D-FINE with HGNetv2 has and `state` has not.
    """
    encoder = settings.get("HybridEncoder") or {}
    decoder = settings.get("DFINETransformer") or {}
    stages = _stages(state)
    widths = _input_widths(state)
    levels = len(widths)
    used = stages["stage_out_channels"][-levels:]
    if widths != used:
        _refuse(
            path,
            f"its encoder reads the last stages of HGNetv2, which have {used} channels, and this encoder "
            f"reads {widths}",
        )
    hidden = len(state["encoder.input_proj.0.conv.weight"])
    width = len(state["decoder.enc_output.proj.weight"])
    points = _num_points(state)
    offsets = len(
        state["decoder.decoder.layers.0.cross_attn.sampling_offsets.bias"]
    )
    num_layers = _count(state, "decoder.decoder.layers")
    bins = len(state["decoder.dec_bbox_head.0.layers.2.bias"]) // 4
    denoising = 0
    if "decoder.denoising_class_embed.weight" in state:
        denoising = decoder.get("num_denoising", 100)
    inner = len(state["encoder.fpn_blocks.0.cv2.1.conv.weight"])
    blocks = _count(state, "encoder.fpn_blocks.0.cv2.0.bottlenecks")
    has_counters = (
        "backbone.stem.stem1.bn.num_batches_tracked" in state
    )  # frozen norms have none
    return {
        "architectures": ["DFineForObjectDetection"],
        "model_type": "d_fine",
        "backbone_config": {
            "model_type": "hgnet_v2",
            **stages,
            "out_features": [f"stage{i}" for i in range(5 - levels, 5)],
        },
        "freeze_backbone_batch_norms": not has_counters,
        "encoder_hidden_dim": hidden,
        "encoder_in_channels": widths,
        "feat_strides": list(STRIDES[-levels:]),
        "encoder_layers": _count(state, "encoder.encoder.0.layers"),
        "encoder_ffn_dim": len(
            state["encoder.encoder.0.layers.0.linear1.bias"]
        ),
        "encoder_attention_heads": encoder.get("nhead", 8),
        "encode_proj_layers": list(
            encoder.get("use_encoder_idx", [levels - 1])
        ),
        "encoder_activation_function": encoder.get("enc_act", "gelu"),
        "positional_encoding_temperature": int(
            encoder.get("pe_temperature", 10000)
        ),
        "activation_function": "silu",
        "hidden_expansion": _expansion(inner, hidden, encoder),
        "depth_mult": _depth(blocks, encoder),
        "eval_size": None,
        "anchor_image_size": None,
        "d_model": width,
        "decoder_in_channels": [hidden] * levels,
        "decoder_ffn_dim": len(state["decoder.decoder.layers.0.linear1.bias"]),
        "num_feature_levels": levels,
        "decoder_n_points": points,
        "decoder_layers": num_layers,
        "decoder_attention_heads": offsets // (2 * sum(points)),
        "decoder_activation_function": "relu",
        "decoder_method": decoder.get("cross_attn_method", "default"),
        "num_queries": decoder.get("num_queries", 300),
        "num_denoising": denoising,
        "label_noise_ratio": float(decoder.get("label_noise_ratio", 0.5)),
        "box_noise_scale": float(decoder.get("box_noise_scale", 1.0)),
        "max_num_bins": bins - 1,
        "reg_scale": float(state["decoder.decoder.reg_scale"]),
        "up": float(state["decoder.decoder.up"]),
        "eval_idx": -1,
        "layer_scale": 1.0,
    }


def _refuse(path: str | Path, reason: str) -> NoReturn:
    """Raise the error for a model that transformers' D-FINE cannot be."""
    raise CheckpointError(
        f"{path} cannot be written for transformers' DFineForObjectDetection: {reason}"
    )


def _stages(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the entries of `HGNetV2Config` for a backbone."""
    stem = "backbone.stem.stem"
    channels = len(state[f"{stem}4.conv.weight"])
    columns: dict[str, list[Any]] = {
        "stage_in_channels": [],
        "stage_mid_channels": [],
        "stage_out_channels": [],
        "stage_num_blocks": [],
        "stage_numb_of_layers": [],
        "stage_downsample": [],
        "stage_light_block": [],
        "stage_kernel_size": [],
    }
    for index in range(_count(state, "backbone.stages")):
        stage = f"backbone.stages.{index}"
        block = f"{stage}.blocks.0"
        is_light = f"{block}.layers.0.conv2.conv.weight" in state
        layer = f"{block}.layers.0.conv2" if is_light else f"{block}.layers.0"
        conv = state[f"{layer}.conv.weight"]
        out = len(state[f"{block}.aggregation.1.conv.weight"])
        columns["stage_in_channels"].append(channels)
        columns["stage_mid_channels"].append(len(conv))
        columns["stage_out_channels"].append(out)
        columns["stage_num_blocks"].append(_count(state, f"{stage}.blocks"))
        columns["stage_numb_of_layers"].append(_count(state, f"{block}.layers"))
        columns["stage_downsample"].append(
            f"{stage}.downsample.conv.weight" in state
        )
        columns["stage_light_block"].append(is_light)
        columns["stage_kernel_size"].append(conv.shape[-1])
        channels = out
    first = state[f"{stem}1.conv.weight"]
    return {
        "stem_channels": [
            first.shape[1],
            len(first),
            len(state[f"{stem}4.conv.weight"]),
        ],
        **columns,
        "hidden_sizes": columns["stage_out_channels"],
        "hidden_act": "relu",
        "use_learnable_affine_block": f"{stem}1.lab.scale" in state,
    }


def _input_widths(state: Mapping[str, Tensor]) -> list[int]:
    """Return the channels of the maps that the encoder reads, fine to coarse."""
    widths = []
    for level in range(_count(state, "encoder.input_proj")):
        weight = state[f"encoder.input_proj.{level}.conv.weight"]
        widths.append(weight.shape[1])
    return widths


def _num_points(state: Mapping[str, Tensor]) -> list[int]:
    """Return the number of sampling points of each level: each point has the weight 1 / number."""
    scales = state["decoder.decoder.layers.0.cross_attn.num_points_scale"]
    points: list[int] = []
    while sum(points) < len(scales):
        points.append(round(1 / float(scales[sum(points)])))
    return points


def _expansion(inner: int, hidden: int, encoder: Mapping[str, Any]) -> float:
    """Return the configured expansion if it gives the inner channels of the fusion blocks, else another."""
    expansion = float(encoder.get("expansion", 1.0))
    if round(expansion * hidden // 2) == inner:
        return expansion
    return (2 * inner + 0.5) / hidden  # the half is rounded down


def _depth(blocks: int, encoder: Mapping[str, Any]) -> float:
    """Return the configured depth if it gives the blocks of the fusion stages, else another."""
    depth = float(encoder.get("depth_mult", 1.0))
    return depth if round(3 * depth) == blocks else blocks / 3


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of modules in a list, from the names of their tensors."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    indices = set()
    for key in state:
        found = pattern.match(key)
        if found:
            indices.add(int(found[1]))
    return len(indices)
