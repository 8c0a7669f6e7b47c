"""Stack the predictions of the decoder's heads, so that the loss handles all heads of a kind in one pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class HeadStack(NamedTuple):
    """K heads over the same queries. The first L of them are decoder layers, whose last one teaches the
    others."""

    suffixes: list[str]
    """Suffixes for the names of each head's terms."""
    logits: Tensor
    """`[K, B, Q, C]` float32."""
    boxes: Tensor
    """`[K, B, Q, 4]` float32, cxcywh."""
    corners: Tensor | None
    """`[L, B, Q, 4, N]` float32; None for heads that predict boxes directly."""
    reference: Tensor | None
    """`[B, Q, 4]`, the boxes that distances refer to."""
    teacher_corners: Tensor | None
    """`[B, Q, 4, N]` float32; None where nothing is distilled."""
    teacher_logits: Tensor | None
    """`[B, Q, C]` float32."""


def matching_heads(outputs: dict[str, Any], num_bins: int) -> list[HeadStack]:
    """Return the heads whose queries are matched: decoder layers, pre head and encoder; one stack, or two if
    the encoder's scores know no classes.

    Args:
        outputs: from `DFINETransformer` in training mode.
        num_bins: N.
    """
    layers = [*outputs.get("aux_outputs", []), outputs]
    suffixes = [*(f"_aux_{i}" for i in range(len(layers) - 1)), ""]
    direct: list[tuple[str, dict[str, Tensor]]] = []
    if "pre_outputs" in outputs:
        direct.append(("_pre", outputs["pre_outputs"]))
    encoder = [
        (f"_enc_{i}", head) for i, head in enumerate(outputs.get("enc_aux_outputs", []))
    ]
    apart = outputs.get("enc_meta", {}).get("class_agnostic", False)
    stacks = [
        _stack(
            layers,
            suffixes,
            direct if apart else direct + encoder,
            outputs["ref_points"],
            num_bins,
        )
    ]
    if apart and encoder:
        stacks.append(_stack([], [], encoder, None, num_bins))
    return stacks


def denoising_heads(outputs: dict[str, Any], num_bins: int) -> HeadStack:
    """Return the heads over the denoising queries; arguments as in `matching_heads`."""
    layers = outputs["dn_outputs"]
    return _stack(
        layers,
        [f"_dn_{i}" for i in range(len(layers))],
        [("_dn_pre", outputs["dn_pre_outputs"])],
        layers[0]["ref_points"],
        num_bins,
    )


def _stack(
    layers: list[dict[str, Tensor]],
    suffixes: list[str],
    direct: list[tuple[str, dict[str, Tensor]]],
    reference: Tensor | None,
    num_bins: int,
) -> HeadStack:
    """All layers of a stack share `reference`."""
    heads = [*layers, *(head for _, head in direct)]
    corners = teacher_corners = teacher_logits = None
    if layers and reference is not None:
        corners = (
            torch.stack([layer["pred_corners"] for layer in layers])
            .float()
            .unflatten(-1, (4, num_bins))
        )
        reference = reference.detach().float()
    if len(layers) > 1:
        teacher_corners = (
            layers[0]["teacher_corners"].detach().float().unflatten(-1, (4, num_bins))
        )
        teacher_logits = layers[0]["teacher_logits"].detach().float()
    return HeadStack(
        [*suffixes, *(suffix for suffix, _ in direct)],
        torch.stack([head["pred_logits"] for head in heads]).float(),
        torch.stack([head["pred_boxes"] for head in heads]).float(),
        corners,
        reference,
        teacher_corners,
        teacher_logits,
    )
