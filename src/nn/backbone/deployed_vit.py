"""The form of a ViT for inference: layer scales are parts of the weights before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..lora import LoRALinear

if TYPE_CHECKING:  # timm takes long to import
    from timm.models.eva import Eva


@torch.no_grad()
def convert_vit_to_deploy(vit: Eva) -> None:
    """Convert a ViT in place, so that a block needs two operations less.

    LoRA updates are merged first. Then each layer scale becomes a part of the linear layer whose output it
    multiplies (CaiT, Touvron et al., 2021, equation 5). Outputs are equal up to rounding.

    Args:
        vit: timm's ViT.
    """
    for layer in list(vit.modules()):
        if isinstance(layer, LoRALinear):
            layer.convert_to_deploy()
    for block in vit.blocks:
        _scale(block.attn.proj, block.gamma_1)
        _scale(block.mlp.fc2, block.gamma_2)
        block.gamma_1 = None
        block.gamma_2 = None


def _scale(layer: nn.Linear, factors: Tensor | None) -> None:
    """Multiply the outputs of a layer by factors, `[out]`; None changes nothing."""
    if factors is None:
        return
    layer.weight.mul_(factors[:, None])
    if layer.bias is not None:
        layer.bias.mul_(factors)
