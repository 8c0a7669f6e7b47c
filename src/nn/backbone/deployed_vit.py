"""The form of a ViT for inference: the same outputs up to rounding, with fewer operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora import LoRALinear

if TYPE_CHECKING:  # timm takes long to import
    from timm.models.eva import Eva


@torch.no_grad()
def convert_vit_to_deploy(vit: Eva) -> None:
    """Convert a ViT in place.

    LoRA updates are merged first. Then each layer scale becomes a part of the linear layer whose output it
    multiplies (CaiT, Touvron et al., 2021, equation 5), and attention is replaced by `DeployedAttention`.
    Converting again changes nothing.

    Args:
        vit: timm's ViT.
    """
    for layer in list(vit.modules()):
        if isinstance(layer, LoRALinear):
            layer.convert_to_deploy()
    for child in vit.blocks:
        block = cast("Any", child)
        _scale(block.attn.proj, block.gamma_1)
        _scale(block.mlp.fc2, block.gamma_2)
        block.gamma_1 = None
        block.gamma_2 = None
        if _is_plain(block.attn):
            block.attn = DeployedAttention(block.attn)


class DeployedAttention(nn.Module):
    """timm's attention with rotary codes, which turns queries and keys together."""

    def __init__(self, attention: Any) -> None:
        """Take over the layers of an attention module.

        Args:
            attention: timm's `EvaAttention` or `AttentionRope` that `_is_plain` accepts.
        """
        super().__init__()
        self.num_heads = int(attention.num_heads)
        self.num_prefix_tokens = int(attention.num_prefix_tokens)
        self.qkv = _with_joined_bias(attention)
        self.proj = attention.proj

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        attn_mask: None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Map tokens `[B, N, D]` to tokens of the same shape.

        Args:
            x: class and register tokens, then patches.
            rope: sines and cosines of the patches, `[n, 2 d]` or `[B, 1, n, 2 d]`.
            attn_mask: not supported; an argument because timm's blocks pass it.
            is_causal: not supported either.
        """
        heads = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        heads = heads.permute(2, 0, 3, 1, 4)  # [3, B, heads, N, d]
        value = heads[2]
        query, key = self._turned(heads[:2], rope).type_as(value)
        x = F.scaled_dot_product_attention(query, key, value)
        return self.proj(x.transpose(1, 2).flatten(2))

    def _turned(self, x: Tensor, rope: Tensor) -> Tensor:
        """Return queries and keys `[2, B, heads, N, d]` with patches rotated by their codes.

        The halves (a, b) of the channels become (a cos - b sin, b cos + a sin) (RoPE, Su et al., 2021). The
        codes of the tokens before the patches are those of no rotation.
        """
        sine, cosine = rope.chunk(2, -1)
        half = x.shape[-1] // 2
        signed = torch.cat((-sine[..., :half], sine[..., half:]), -1)
        before = (0, 0, self.num_prefix_tokens, 0)
        signed = F.pad(signed, before)
        cosine = F.pad(cosine, before, value=1.0)
        swapped = torch.cat((x[..., half:], x[..., :half]), -1)
        return torch.addcmul(swapped * signed, x, cosine)


def _is_plain(attention: Any) -> bool:
    """Return True for attention without gates, norms and dropout, with codes for halves of the channels."""
    if isinstance(attention, DeployedAttention):
        return False
    parts = (attention.q_norm, attention.k_norm, attention.norm)
    return (
        attention.fused_attn
        and attention.rotate_half
        and attention.qkv is not None
        and attention.gate is None
        and all(isinstance(part, nn.Identity) for part in parts)
    )


def _with_joined_bias(attention: Any) -> nn.Linear:
    """Return the layer of queries, keys and values, with the bias that timm keeps beside it."""
    layer: nn.Linear = attention.qkv
    if getattr(attention, "q_bias", None) is not None:
        parts = (attention.q_bias, attention.k_bias, attention.v_bias)
        layer.bias = nn.Parameter(torch.cat(parts))
    return layer


def _scale(layer: nn.Linear, factors: Tensor | None) -> None:
    """Multiply the outputs of a layer by factors, `[out]`; None changes nothing."""
    if factors is None:
        return
    layer.weight.mul_(factors[:, None])
    if layer.bias is not None:
        layer.bias.mul_(factors)
