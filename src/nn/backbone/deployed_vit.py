"""The form of a ViT for inference: the same outputs up to rounding, with fewer operations."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora import LoRALinear
from .cached_rope import CachedRope

if TYPE_CHECKING:  # timm takes long to import
    from timm.models.eva import Eva


@torch.no_grad()
def convert_vit_to_deploy(vit: Eva) -> None:
    """Convert a ViT in place.

    LoRA updates are merged first. Then each layer scale becomes a part of the linear layer whose output it
    multiplies (CaiT, Touvron et al., 2021, equation 5), and attention is replaced by `DeployedAttention` if
    this is possible in all blocks. Converting again changes nothing.

    Args:
        vit: timm's ViT of `build_vit`.
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
    blocks = [cast("Any", block) for block in vit.blocks]
    if all(_is_plain(block.attn) for block in blocks):
        prefix = int(blocks[0].attn.num_prefix_tokens)
        cast("CachedRope", vit.rope).prepare_with(
            partial(prepared_codes, num_prefix=prefix)
        )
        for block in blocks:
            block.attn = DeployedAttention(block.attn)


def prepared_codes(codes: Tensor, num_prefix: int) -> Tensor:
    """Return the two factors that `DeployedAttention` multiplies tokens with, once for all blocks.

    Args:
        codes: sines and cosines of the patches, `[n, 2 d]`.
        num_prefix: class and register tokens before the patches, P, which are not rotated.

    Returns:
        `[2, P + n, d]`: sines, negative in the first half of the channels, and cosines.
    """
    sine, cosine = codes.chunk(2, -1)
    half = sine.shape[-1] // 2
    signed = torch.cat((-sine[..., :half], sine[..., half:]), -1)
    before = (0, 0, num_prefix, 0)
    return torch.stack(
        (F.pad(signed, before), F.pad(cosine, before, value=1.0))
    )


class DeployedAttention(nn.Module):
    """timm's attention with rotary codes, which turns queries and keys together."""

    def __init__(self, attention: Any) -> None:
        """Take over the layers of an attention module.

        Args:
            attention: timm's `EvaAttention` or `AttentionRope` that `_is_plain` accepts.
        """
        super().__init__()
        self.num_heads = int(attention.num_heads)
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
            rope: factors of `prepared_codes`: `[2, N, d]`, or `[2, W, 1, N, d]` for W windows per image.
            attn_mask: not supported; an argument because timm's blocks pass it.
            is_causal: not supported either.
        """
        heads = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        heads = heads.permute(2, 0, 3, 1, 4)  # [3, B, heads, N, d]
        value = heads[2]
        query, key = self._turned(heads[:2], rope).type_as(value)
        x = F.scaled_dot_product_attention(query, key, value)
        return self.proj(x.transpose(1, 2).flatten(2))

    def _turned(self, x: Tensor, factors: Tensor) -> Tensor:
        """Return queries and keys `[2, B, heads, N, d]` with patches rotated by their codes.

        The halves (a, b) of the channels become (a cos - b sin, b cos + a sin) (RoPE, Su et al., 2021).
        """
        signed, cosine = factors
        half = x.shape[-1] // 2
        swapped = torch.cat((x[..., half:], x[..., :half]), -1)
        if signed.dim() == 2:
            return torch.addcmul(swapped * signed, x, cosine)
        # one set of codes for the windows of all images: [2, images, W, heads, N, d]
        windows = (-1, len(signed))
        turned = torch.addcmul(
            swapped.unflatten(1, windows) * signed,
            x.unflatten(1, windows),
            cosine,
        )
        return turned.flatten(1, 2)


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
