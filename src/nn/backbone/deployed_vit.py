"""The form of a ViT for inference: the same outputs up to rounding, with fewer operations."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import onednn
from ...ops.cpu_inference import is_cpu_inference
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
        if not is_cpu_inference(x):
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
    """timm's attention with rotary codes, which turns queries and keys together.

    For inference on a CPU, the channels of queries and keys are computed in another order: each channel of
    the first half is followed by its partner of the second half. Both are then one complex number, which is
    turned in place by one product. The products of queries and keys are the same.
    """

    def __init__(self, attention: Any) -> None:
        """Take over the layers of an attention module.

        Args:
            attention: timm's `EvaAttention` or `AttentionRope` that `_is_plain` accepts.
        """
        super().__init__()
        self.num_heads = int(attention.num_heads)
        self.qkv = _with_joined_bias(attention)
        self.proj = attention.proj
        self._paired: PairedLayer | None = None

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """Map tokens `[B, N, D]` to tokens of the same shape.

        Args:
            x: class and register tokens, then patches.
            rope: factors of `prepared_codes`: `[3, N, d]`, or `[3, W, 1, N, d]` for W windows per image.
        """
        return self.proj(self.mixed(x, rope))

    def mixed(self, x: Tensor, rope: Tensor) -> Tensor:
        """Return what `forward` projects: the values of all heads weighted by attention, `[B, N, D]`."""
        if is_cpu_inference(x):
            heads = self._paired_layer(x).heads(x)
            _turn_pairs(heads[:2], rope)
            query, key, value = heads
        else:
            heads = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
            heads = heads.permute(2, 0, 3, 1, 4)  # [3, B, heads, N, d]
            value = heads[2]
            query, key = _turned(heads[:2], rope).type_as(value)
        x = F.scaled_dot_product_attention(query, key, value)
        return x.transpose(1, 2).flatten(2)

    def _paired_layer(self, x: Tensor) -> PairedLayer:
        """Return the layer with channels in pairs; it is built again after the weight has changed."""
        if self._paired is None or not self._paired.is_of(self.qkv):
            self._paired = PairedLayer(
                self.qkv, self.num_heads, by_onednn=onednn.takes(x)
            )
        return self._paired


class PairedLayer:
    """Linear layer of queries, keys and values whose channels of queries and keys are in pairs.

    With MKL, each head is computed by a product of its own, which leaves the tokens of a head side by side in
    memory. That makes attention faster by more than the products lose.
    """

    def __init__(
        self, layer: nn.Linear, num_heads: int, *, by_onednn: bool
    ) -> None:
        """Copy the weight of a layer, `[3 * D, D]`, in the order of the heads' channels.

        Args:
            layer: layer without gradients, in float32 on a CPU.
            num_heads: number of attention heads.
            by_onednn: compute all heads by one product in oneDNN, where it is faster than MKL.
        """
        # the copied tensors are kept, so that no others can take their memory
        self._source = _tensors(layer)
        self._changes = _changes(self._source)
        self._num_heads = num_heads
        self._by_onednn = by_onednn
        weight = _in_pairs(layer.weight.detach(), num_heads)  # [3 * D, D]
        if not by_onednn:
            by_head = weight.unflatten(0, (3 * num_heads, -1))
            weight = by_head.transpose(1, 2).contiguous()  # [3 * heads, D, d]
        self._weight = weight
        self._bias: Tensor | None = None
        if layer.bias is not None:
            self._bias = _in_pairs(layer.bias.detach(), num_heads)

    def is_of(self, layer: nn.Linear) -> bool:
        """Return whether the layer still has the weight and the bias that were copied."""
        tensors = _tensors(layer)
        places = [tensor.data_ptr() for tensor in tensors]
        copied = [tensor.data_ptr() for tensor in self._source]
        return places == copied and _changes(tensors) == self._changes

    def heads(self, x: Tensor) -> Tensor:
        """Map tokens `[B, N, D]` to queries, keys and values, `[3, B, heads, N, d]`, which may be changed."""
        if self._by_onednn:
            joint = onednn.linear(x, self._weight, self._bias)
            by_token = joint.unflatten(2, (3, self._num_heads, -1))
            return by_token.permute(2, 0, 3, 1, 4)
        tokens = x.flatten(0, 1).expand(3 * self._num_heads, -1, -1)
        by_head = torch.bmm(tokens, self._weight)  # [3 * heads, B * N, d]
        if self._bias is not None:
            by_head.add_(self._bias.view(len(by_head), 1, -1))
        by_head = by_head.view(3, self._num_heads, *x.shape[:2], -1)
        return by_head.transpose(1, 2)


def _tensors(layer: nn.Linear) -> list[Tensor]:
    """Return the weight of a layer, and its bias if it has one, without gradients."""
    tensors = (layer.weight, layer.bias)
    return [tensor.detach() for tensor in tensors if tensor is not None]


def _changes(tensors: list[Tensor]) -> list[int]:
    """Return how often tensors were changed; torch does not count this for those made in inference mode."""
    return [t._version for t in tensors if not t.is_inference()]


def _in_pairs(rows: Tensor, num_heads: int) -> Tensor:
    """Return rows `[3 * D, ...]` of queries, keys and values with those of queries and keys in pairs.

    In each head, the halves a1, a2, ... and b1, b2, ... become a1, b1, a2, b2, ...
    """
    by_head = rows.unflatten(0, (3, num_heads, 2, -1))
    pairs = by_head[:2].transpose(2, 3).flatten(0, 3)
    return torch.cat((pairs, by_head[2].flatten(0, 2)))


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


def _turn_pairs(x: Tensor, factors: Tensor) -> None:
    """Do what `_turned` does in place, in queries and keys whose channels are in pairs."""
    codes = torch.view_as_complex(factors[2].unflatten(-1, (-1, 2)))
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    if codes.dim() == 2:
        pairs.mul_(codes)
    else:
        pairs.unflatten(1, (-1, len(codes))).mul_(codes)


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
