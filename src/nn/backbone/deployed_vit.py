"""The form of a ViT for inference: the same outputs up to rounding, with fewer operations."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import onednn
from ..lora import LoRALinear
from .cached_rope import CachedRope

if TYPE_CHECKING:  # timm takes long to import
    from timm.models.eva import Eva


@torch.no_grad()
def convert_vit_to_deploy(vit: Eva) -> None:
    """Convert a ViT in place.

    LoRA updates are merged first. Then each layer scale becomes a part of the linear layer whose output it
    multiplies (CaiT, Touvron et al., 2021, equation 5), and blocks are replaced by `DeployedBlock` if this is
    possible for all of them. Converting again changes nothing.

    Args:
        vit: timm's ViT of `build_vit`.
    """
    for layer in list(vit.modules()):
        if isinstance(layer, LoRALinear):
            layer.convert_to_deploy()
    blocks = [cast("Any", block) for block in vit.blocks]
    if any(isinstance(block, DeployedBlock) for block in blocks):
        return
    for block in blocks:
        _scale(block.attn.proj, block.gamma_1)
        _scale(block.mlp.fc2, block.gamma_2)
        block.gamma_1 = None
        block.gamma_2 = None
    if all(_is_plain(block.attn) for block in blocks):
        prefix = int(blocks[0].attn.num_prefix_tokens)
        cast("CachedRope", vit.rope).prepare_with(
            partial(prepared_codes, num_prefix=prefix)
        )
        for index, block in enumerate(blocks):
            vit.blocks[index] = DeployedBlock(block)


def prepared_codes(codes: Tensor, num_prefix: int) -> Tensor:
    """Return the factors that `DeployedAttention` multiplies tokens with, once for all blocks.

    Args:
        codes: sines and cosines of the patches, `[n, 2 d]`.
        num_prefix: class and register tokens before the patches, P, which are not rotated.

    Returns:
        `[3, P + n, d]`: sines, negative in the first half of the channels; cosines; and pairs of cosine and
        sine, which `torch.view_as_complex` reads as complex numbers.
    """
    sine, cosine = codes.chunk(2, -1)
    half = sine.shape[-1] // 2
    signed = torch.cat((-sine[..., :half], sine[..., half:]), -1)
    before = (0, 0, num_prefix, 0)
    signed = F.pad(signed, before)
    cosine = F.pad(cosine, before, value=1.0)
    pairs = torch.stack((cosine[..., :half], signed[..., half:]), -1)
    return torch.stack((signed, cosine, pairs.flatten(-2)))


class DeployedBlock(nn.Module):
    """timm's block without layer scales; on a CPU, it adds to its tokens in place.

    Each new tensor costs a CPU a pass over the memory, and page faults if the memory is new.
    """

    def __init__(self, block: Any) -> None:
        """Take over the layers of a block.

        Args:
            block: timm's `EvaBlock`, with attention that `_is_plain` accepts and without layer scales.
        """
        super().__init__()
        self.norm1 = block.norm1
        self.attn = DeployedAttention(block.attn)
        self.norm2 = block.norm2
        self.mlp = block.mlp

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        attn_mask: None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Map tokens `[B, N, D]` to tokens of the same shape, in a new tensor.

        Args:
            x: class and register tokens, then patches.
            rope: factors of `prepared_codes`, as for `DeployedAttention`.
            attn_mask: not supported; an argument because timm's ViT passes it.
            is_causal: not supported either.
        """
        if not _may_overwrite(x):
            x = x + self.attn(self.norm1(x), rope)
            return x + self.mlp(self.norm2(x))
        mixed = self.attn.mixed(self.norm1(x), rope)
        x = _sum(x, self.attn.proj, mixed, overwrite=False)
        if not _is_plain_mlp(self.mlp):
            return x.add_(self.mlp(self.norm2(x)))
        hidden = _linear(self.mlp.fc1, self.norm2(x))
        hidden = torch.ops.aten.gelu_(hidden)
        return _sum(x, self.mlp.fc2, hidden, overwrite=True)


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

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """Map tokens `[B, N, D]` to tokens of the same shape.

        Args:
            x: class and register tokens, then patches.
            rope: factors of `prepared_codes`: `[3, N, d]`, or `[3, W, 1, N, d]` for W windows per image.
        """
        return self.proj(self.mixed(x, rope))

    def mixed(self, x: Tensor, rope: Tensor) -> Tensor:
        """Return what `forward` projects: the values of all heads weighted by attention, `[B, N, D]`."""
        heads = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        heads = heads.permute(2, 0, 3, 1, 4)  # [3, B, heads, N, d]
        value = heads[2]
        turn = _turned_as_complex if _may_overwrite(value) else _turned
        query, key = turn(heads[:2], rope).type_as(value)
        x = F.scaled_dot_product_attention(query, key, value)
        return x.transpose(1, 2).flatten(2)


def _turned(x: Tensor, factors: Tensor) -> Tensor:
    """Return queries and keys `[2, B, heads, N, d]` with patches rotated by their codes.

    The halves (a, b) of the channels become (a cos - b sin, b cos + a sin) (RoPE, Su et al., 2021).
    """
    signed, cosine, _ = factors
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


def _turned_as_complex(x: Tensor, factors: Tensor) -> Tensor:
    """Do the same as `_turned` with half of the passes over the memory, by products of complex numbers.

    The channels of the result are in another order, (a, b, a, b, ...), in queries as in keys, so that their
    products are the same.
    """
    codes = torch.view_as_complex(factors[2].unflatten(-1, (-1, 2)))
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:])
    if codes.dim() == 2:
        turned.mul_(codes)
    else:
        turned.unflatten(1, (-1, len(codes))).mul_(codes)
    return torch.view_as_real(turned).flatten(-2)


def _may_overwrite(x: Tensor) -> bool:
    """Return whether tensors can be changed in place: in float32 on a CPU, without gradients, not traced."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
    )


def _is_addition(layer: nn.Linear, x: Tensor) -> bool:
    """Return True for a layer with a bias that does not run in oneDNN."""
    is_known = type(layer) in (nn.Linear, onednn.Linear)
    return is_known and layer.bias is not None and not onednn.takes(x)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return what a layer makes of `[B, N, in]`, with the bias added in place, which takes less time."""
    if not _is_addition(layer, x):
        return layer(x)
    return F.linear(x, layer.weight).add_(layer.bias)


def _sum(
    total: Tensor, layer: nn.Linear, x: Tensor, *, overwrite: bool
) -> Tensor:
    """Return the sum of `total`, `[B, N, out]`, and what a layer makes of `x`, `[B, N, in]`.

    Args:
        total: contiguous tokens.
        layer: layer with or without a bias.
        x: its inputs.
        overwrite: use the memory of `total`.
    """
    if not _is_addition(layer, x):
        return total.add_(layer(x)) if overwrite else total + layer(x)
    total = torch.add(total, layer.bias, out=total if overwrite else None)
    rows = total.view(-1, total.shape[-1])
    rows.addmm_(x.flatten(0, 1), layer.weight.t())
    return total


def _is_plain_mlp(mlp: Any) -> bool:
    """Return True for a linear layer, an exact GELU and another linear layer."""
    from timm.layers import Mlp

    return (
        isinstance(mlp, Mlp)
        and isinstance(mlp.act, nn.GELU)
        and mlp.act.approximate == "none"
        and isinstance(mlp.fc1, nn.Linear)
        and isinstance(mlp.norm, nn.Identity)
    )


def _is_plain(attention: Any) -> bool:
    """Return True for attention without gates, norms and dropout, with codes for halves of the channels."""
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
