"""The parts of a decoder layer. Attribute names are those of the released weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.activations import build_activation
from ...ops.deformable import LevelTokens
from .deformable_attention import MultiScaleDeformableAttention

HALF_MAX = 65504.0
"""Largest finite fp16 number, which bounds the output of the feed-forward part."""

TOP_PROBABILITIES = 4
"""Number of the largest probabilities of an edge that the quality head reads."""


Norm = Literal["layer", "rms"]
"""Norm after each sum of a decoder layer: LayerNorm (D-FINE) or RMSNorm (DEIMv2)."""

FeedForward = Literal["mlp", "swiglu"]
"""Feed-forward part of a decoder layer: two linear layers (D-FINE) or SwiGLU (DEIMv2)."""


class MLP(nn.Module):
    """Linear layers with an activation between each two."""

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        num_layers: int,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        widths = [in_features, *[hidden] * (num_layers - 1), out_features]
        self.layers = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(widths, widths[1:])
        )
        self.activation = build_activation(activation)

    @property
    def linears(self) -> list[nn.Linear]:
        """The linear layers in order."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def start_at_zero(self) -> None:
        """Initialize the last layer so that every output is zero."""
        last = self.linears[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., in]` to `[..., out]`."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class RMSNorm(nn.Module):
    """Division by the root mean square of the channels (Zhang and Sennrich, 2019), computed in float32."""

    EPS = 1e-6

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., D]` to the same shape and type."""
        precise = x.float()
        mean_square = precise.square().mean(-1, keepdim=True)
        normed = precise * torch.rsqrt(mean_square + self.EPS)
        return normed.to(x.dtype) * self.scale


_NORMS: dict[Norm, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "rms": RMSNorm,
}


class SwiGLU(nn.Module):
    """Feed-forward part with a gated hidden layer (Shazeer, 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)
        for linear in (self.w12, self.w3):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., D]` to the same shape."""
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class Gate(nn.Module):
    """Mixture of two tensors by learned gates instead of a residual sum (D-FINE, section 4.3)."""

    def __init__(self, width: int, norm: Norm = "layer") -> None:
        super().__init__()
        self.gate = nn.Linear(2 * width, 2 * width)
        self.norm = _NORMS[norm](width)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Map two tensors `[B, Q, D]` to one of the same shape."""
        gates = torch.sigmoid(self.gate(torch.cat([a, b], -1)))
        gate_a, gate_b = gates.chunk(2, -1)
        return self.norm(gate_a * a + gate_b * b)


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention and a feed-forward part."""

    def __init__(
        self,
        width: int,
        nhead: int,
        dim_feedforward: int,
        dropout: float,
        activation: str,
        num_points: Sequence[int],
        *,
        discrete: bool = False,
        norm: Norm = "layer",
        feed_forward: FeedForward = "mlp",
        gateway: bool = True,
    ) -> None:
        """Build the layers.

        Args:
            width: channels of the queries, D.
            nhead: number of attention heads.
            dim_feedforward: hidden width of the feed-forward part; SwiGLU has half of it.
            dropout: probability of dropout.
            activation: activation of the feed-forward part; SwiGLU has its own.
            num_points: number of sampling points in each level.
            discrete: cross-attention reads the nearest pixel instead of interpolating.
            norm: norm after each sum.
            feed_forward: kind of the feed-forward part.
            gateway: mix queries and cross-attention by learned gates; False adds them.
        """
        super().__init__()
        self.self_attn = nn.MultiheadAttention(
            width, nhead, dropout=dropout, batch_first=True
        )
        self.norm1 = _NORMS[norm](width)
        self.cross_attn = MultiScaleDeformableAttention(
            width, nhead, num_points, discrete=discrete
        )
        if gateway:
            self.gateway = Gate(width, norm)
        else:
            self.norm2 = _NORMS[norm](width)
        if feed_forward == "swiglu":
            self.swish_ffn = SwiGLU(width, dim_feedforward // 2)
        else:
            self.linear1 = nn.Linear(width, dim_feedforward)
            self.linear2 = nn.Linear(dim_feedforward, width)
            nn.init.xavier_uniform_(self.linear1.weight)
            nn.init.xavier_uniform_(self.linear2.weight)
        self.norm3 = _NORMS[norm](width)
        self.dropout = nn.Dropout(dropout)
        self.activation = build_activation(activation)
        self.has_gateway = gateway
        self.feed_forward = feed_forward

    def forward(
        self,
        x: Tensor,
        reference: Tensor,
        values: list[Tensor] | LevelTokens,
        position: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Refine queries.

        Args:
            x: queries, `[B, Q, D]`.
            reference: boxes of the queries, `[B, Q, 4]` cxcywh in 0..1.
            values: maps or tokens of the levels, from `cross_attn.values_of`.
            position: position codes of the queries, `[B, Q, D]`.
            mask: `[Q, Q]`, True where a query (row) must not see another; or None.

        Returns:
            Refined queries, `[B, Q, D]`.
        """
        placed = x + position
        attended, _ = self.self_attn(
            placed, placed, x, attn_mask=mask, need_weights=False
        )
        x = self.norm1(x + self.dropout(attended))
        gathered = self.cross_attn(x + position, reference, values)
        x = self._joined(x, self.dropout(gathered))
        hidden = self.dropout(self._fed_forward(x))
        return self.norm3((x + hidden).clamp(-HALF_MAX, HALF_MAX))

    def _joined(self, x: Tensor, gathered: Tensor) -> Tensor:
        """Add what cross-attention has gathered to the queries, both `[B, Q, D]`."""
        if self.has_gateway:
            return self.gateway(x, gathered)
        return self.norm2(x + gathered)

    def _fed_forward(self, x: Tensor) -> Tensor:
        """Return the output of the feed-forward part, `[B, Q, D]`."""
        if self.feed_forward == "swiglu":
            return self.swish_ffn(x)
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class LQE(nn.Module):
    """Location quality estimator (LQE), which maps edge distributions to an offset of the class logits.

    It reads how concentrated the distributions are: their largest probabilities, and the mean of these.
    """

    def __init__(
        self, hidden: int = 64, num_layers: int = 2, activation: str = "relu"
    ) -> None:
        super().__init__()
        inputs = 4 * (TOP_PROBABILITIES + 1)
        self.reg_conf = MLP(inputs, hidden, 1, num_layers, activation)
        self.reg_conf.start_at_zero()

    def forward(self, corners: Tensor) -> Tensor:
        """Map corner logits `[B, Q, 4 * K]` to an offset `[B, Q, 1]`."""
        probabilities = F.softmax(corners.unflatten(-1, (4, -1)), dim=-1)
        top = probabilities.topk(
            TOP_PROBABILITIES, dim=-1
        ).values  # [B, Q, 4, 4]
        statistics = torch.cat(
            [top, top.mean(-1, keepdim=True)], -1
        )  # [B, Q, 4, 5]
        return self.reg_conf(statistics.flatten(2))
