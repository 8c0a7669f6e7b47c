"""timm's ViT blocks with less memory traffic in eager inference; the numbers are the same bit by bit.

timm applies rotary position codes and layer scales in steps that each write a new tensor. Without autograd
these steps can write in place. Training, compilation and export run timm's own code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn


def speed_up_inference(vit: Eva) -> None:
    """Let the blocks of a ViT write in place in eager inference; parameters and keys do not change."""
    for block in vit.blocks:
        if type(block) is not EvaBlock:
            continue
        block.__class__ = _Block
        attention = block.attn
        faster = _ATTENTION.get(type(attention))
        if faster is not None:
            attention.__class__ = faster  # type: ignore[assignment]  # a subclass without state of its own


def _is_eager_inference() -> bool:
    """Return True if operations are executed at once and nothing records them."""
    is_recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return not torch.is_grad_enabled() and not is_recorded


class _Block(EvaBlock):
    """A block that scales and adds in place in eager inference."""

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Map tokens `[B, N, D]` to tokens of the same shape; the arguments are those of timm's block."""
        if self.training or not _is_eager_inference():
            return super().forward(x, rope, attn_mask, is_causal)
        update = self.attn(self.norm1(x), rope, attn_mask, is_causal)
        x = _add_scaled(update, self.gamma_1, x)
        return _add_scaled(self.mlp(self.norm2(x)), self.gamma_2, x)


def _add_scaled(update: Tensor, scale: Tensor | None, x: Tensor) -> Tensor:
    """Return x + scale * update; the memory of `update` is used again where all types agree."""
    scales = () if scale is None else (scale,)
    if any(other.dtype != x.dtype for other in (update, *scales)):
        return x + (update if scale is None else scale * update)
    if scale is not None:
        update.mul_(scale)
    return update.add_(x)


class _Attention(EvaAttention):
    """timm's usual attention, which rotates queries and keys in place in eager inference."""

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Map tokens `[B, N, D]` to tokens of the same shape; the arguments are those of timm's attention."""
        is_masked = attn_mask is not None or is_causal
        if rope is None or is_masked or not _rotates_in_place(self, x, rope):
            return super().forward(x, rope, attn_mask, is_causal)
        if self.q_bias is None or self.k_bias is None or self.v_bias is None:
            return _attend(self, self.qkv(x), rope)
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        if self.qkv_bias_separate:
            return _attend(self, self.qkv(x).add_(bias), rope)
        return _attend(self, F.linear(x, self.qkv.weight, bias), rope)


class _AttentionWithKeyBias(AttentionRope):
    """timm's attention with a bias of the keys, which rotates in place in eager inference."""

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Map tokens `[B, N, D]` to tokens of the same shape; the arguments are those of timm's attention."""
        is_masked = attn_mask is not None or is_causal
        if rope is None or is_masked or not _rotates_in_place(self, x, rope):
            return super().forward(x, rope, attn_mask, is_causal)
        return _attend(self, self.qkv(x), rope)


_ATTENTION: dict[type[nn.Module], type[nn.Module]] = {
    EvaAttention: _Attention,
    AttentionRope: _AttentionWithKeyBias,
}
"""timm's kinds of attention, and the same with less memory traffic."""


def _rotates_in_place(
    attention: EvaAttention | AttentionRope,
    x: Tensor,
    rope: Tensor,
) -> bool:
    """Return True in eager inference, for attention without gates and norms, in one precision."""
    parts = (attention.q_norm, attention.k_norm, attention.norm)
    is_plain = (
        attention.fused_attn
        and attention.rotate_half
        and attention.qkv is not None
        and attention.gate is None
        and all(isinstance(part, nn.Identity) for part in parts)
    )
    is_mixed = torch.is_autocast_enabled(x.device.type)
    return (
        is_plain
        and not attention.training
        and _is_eager_inference()
        and not is_mixed
        and x.dtype == rope.dtype
    )


def _attend(
    attention: EvaAttention | AttentionRope, qkv: Tensor, rope: Tensor
) -> Tensor:
    """Return the attention output `[B, N, D]`.

    Args:
        attention: a plain attention module, as `_rotates_in_place` checks.
        qkv: queries, keys and values, `[B, N, 3 D]`.
        rope: sine and cosine of the patches, `[n, C]` or `[B, 1, n, C]`; the first N - n tokens have none.
    """
    heads = qkv.unflatten(2, (3, attention.num_heads, -1))
    query, key, value = heads.permute(2, 0, 3, 1, 4)  # [B, heads, N, d] each
    first = attention.num_prefix_tokens
    x = F.scaled_dot_product_attention(
        _rotated(query, rope, first), _rotated(key, rope, first), value
    )
    return attention.proj_drop(attention.proj(x.transpose(1, 2).flatten(2)))


def _rotated(x: Tensor, rope: Tensor, first: int) -> Tensor:
    """Return queries or keys `[B, heads, N, d]` with the tokens from `first` on rotated by their codes.

    The halves (a, b) of the channels become (a cos - b sin, b cos + a sin) (RoPE, Su et al., 2021).
    """
    sine, cosine = rope.chunk(2, -1)
    half = x.shape[-1] // 2
    patches = x[:, :, first:]
    result = x.new_empty(x.shape)
    result[:, :, :first] = x[:, :, :first]
    turned = result[:, :, first:]
    torch.mul(patches, cosine, out=turned)
    turned[..., :half] -= patches[..., half:] * sine[..., :half]
    turned[..., half:] += patches[..., :half] * sine[..., half:]
    return result
