"""LoRA factors in state dicts and files, and weights with the factors merged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.contracts import LORA_FACTORS, Adapted


def is_lora_factor(key: str) -> bool:
    """Return whether an entry of a state dict is a LoRA factor."""
    return key.rpartition(".")[2] in LORA_FACTORS


@torch.no_grad()
def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with every LoRA update merged into its weight.

    Keys and shapes are those of a model without LoRA. The module is not changed; entries without LoRA are not
    copied.
    """
    state = module.state_dict()
    for name, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, Adapted):
            prefix = f"{name}." if name else ""
            state[f"{prefix}weight"] = layer.merged_weight()
            for factor in LORA_FACTORS:
                del state[f"{prefix}{factor}"]
    return state
