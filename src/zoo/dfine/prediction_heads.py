"""Stacks of the predictions of the decoder's heads, so that one pass computes the loss of all heads."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_NamedHead = tuple[str, dict[str, Tensor]]
"""Suffix and predictions of a head."""


class HeadStack(NamedTuple):
    """K heads over the same queries.

    The first L heads are decoder layers; the last of these teaches the others.
    """

    suffixes: list[str]
    """Suffix of each head for the names of its loss terms."""
    logits: Tensor
    """Class logits, `[K, B, Q, C]` float32."""
    boxes: Tensor
    """Boxes, `[K, B, Q, 4]` float32, cxcywh in 0..1."""
    corners: Tensor | None
    """Logits of the edge distributions, `[L, B, Q, 4, N]` float32; None if no head is a decoder layer."""
    reference: Tensor | None
    """Boxes that distances refer to, `[B, Q, 4]`; None if no head is a decoder layer."""
    teacher_corners: Tensor | None
    """Edge logits of the last layer, `[B, Q, 4, N]` float32; None if there is no distillation."""
    teacher_logits: Tensor | None
    """Class logits of the last layer, `[B, Q, C]` float32; None if there is no distillation."""


def matching_heads(outputs: dict[str, Any], num_bins: int) -> list[HeadStack]:
    """Return the heads whose queries are matched: decoder layers, pre head and encoder.

    They form one stack. If the encoder has a single foreground score instead of classes, its heads form a
    second stack.

    Args:
        outputs: outputs of `DFINETransformer` in training mode.
        num_bins: number of bins, N.
    """
    layers = [*outputs.get("aux_outputs", []), outputs]
    suffixes = [f"_aux_{i}" for i in range(len(layers) - 1)]
    suffixes.append("")
    direct: list[_NamedHead] = []
    if "pre_outputs" in outputs:
        direct.append(("_pre", outputs["pre_outputs"]))
    encoder: list[_NamedHead] = []
    for index, head in enumerate(outputs.get("enc_aux_outputs", [])):
        encoder.append((f"_enc_{index}", head))
    class_agnostic = outputs.get("enc_meta", {}).get("class_agnostic", False)
    if not class_agnostic:
        direct += encoder
    stacks = [_stack(layers, suffixes, direct, outputs["ref_points"], num_bins)]
    if class_agnostic and encoder:
        stacks.append(_stack([], [], encoder, None, num_bins))
    return stacks


def denoising_heads(outputs: dict[str, Any], num_bins: int) -> HeadStack:
    """Return the heads over the denoising queries; arguments as in `matching_heads`."""
    layers = outputs["dn_outputs"]
    suffixes = [f"_dn_{i}" for i in range(len(layers))]
    direct: list[_NamedHead] = [("_dn_pre", outputs["dn_pre_outputs"])]
    return _stack(layers, suffixes, direct, layers[0]["ref_points"], num_bins)


def _stack(
    layers: list[dict[str, Tensor]],
    suffixes: list[str],
    direct: list[_NamedHead],
    reference: Tensor | None,
    num_bins: int,
) -> HeadStack:
    """Stack heads over the same queries.

    Args:
        layers: outputs of decoder layers.
        suffixes: suffix of each layer.
        direct: heads that predict boxes directly, with their suffixes.
        reference: boxes that the distances of all layers refer to, `[B, Q, 4]`; None without layers.
        num_bins: number of bins, N.
    """
    suffixes = [*suffixes, *(suffix for suffix, _ in direct)]
    heads = [*layers, *(head for _, head in direct)]
    logits = torch.stack([head["pred_logits"] for head in heads]).float()
    boxes = torch.stack([head["pred_boxes"] for head in heads]).float()
    edges = (4, num_bins)
    corners = None
    teacher_corners = None
    teacher_logits = None
    if layers and reference is not None:
        corners = torch.stack(
            [layer["pred_corners"] for layer in layers]
        ).float()
        corners = corners.unflatten(-1, edges)
        reference = reference.detach().float()
    if len(layers) > 1:
        teacher_corners = layers[0]["teacher_corners"].detach().float()
        teacher_corners = teacher_corners.unflatten(-1, edges)
        teacher_logits = layers[0]["teacher_logits"].detach().float()
    return HeadStack(
        suffixes,
        logits,
        boxes,
        corners,
        reference,
        teacher_corners,
        teacher_logits,
    )
