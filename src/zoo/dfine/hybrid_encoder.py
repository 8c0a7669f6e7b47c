"""The encoder between backbone and decoder: self-attention on the coarsest map, then FPN and PAN fusion."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.registry import register
from ...ops.activations import build_activation
from ...ops.batch_norm import BatchNorm2d
from ...ops.maps import flatten_map
from .csp_blocks import ConvNorm, FusionBlock, RepNCSPELAN4, SCDown

FuseOp = Literal["cat", "sum"]
"""How two maps enter a fusion block: concatenated (D-FINE) or added (DEIMv2)."""


@register()
class HybridEncoder(nn.Module):
    """RT-DETR's efficient hybrid encoder with D-FINE's GELAN fusion blocks."""

    __role__ = "encoder"
    __share__ = ["eval_spatial_size"]

    def __init__(
        self,
        in_channels: Sequence[int] = (512, 1024, 2048),
        feat_strides: Sequence[int] = (8, 16, 32),
        hidden_dim: int = 256,
        nhead: int = 8,
        dim_feedforward: int = 1024,
        dropout: float = 0.0,
        enc_act: str = "gelu",
        use_encoder_idx: Sequence[int] = (2,),
        num_encoder_layers: int = 1,
        pe_temperature: float = 10000,
        expansion: float = 1.0,
        depth_mult: float = 1.0,
        act: str = "silu",
        fuse_op: FuseOp = "cat",
        fusion_block: FusionBlock = "gelan",
        project_input: Literal["always", "if_needed"] = "always",
        eval_spatial_size: Sequence[int] | None = None,
    ) -> None:
        """Build the layers.

        Args:
            in_channels: channels of the backbone's maps, fine to coarse.
            feat_strides: strides of the backbone's maps, in pixels.
            hidden_dim: channels of every output map, D.
            nhead: number of attention heads.
            dim_feedforward: hidden width of the feed-forward part of the attention layers.
            dropout: probability of dropout in the attention layers.
            enc_act: activation in the feed-forward part.
            use_encoder_idx: indices of the levels that pass through self-attention.
            num_encoder_layers: number of attention layers on each such level; 0 builds none.
            pe_temperature: base of the frequencies of the sine position code.
            expansion: inner width of the fusion blocks relative to `hidden_dim` / 2.
            depth_mult: number of blocks in each fusion stage relative to 3.
            act: activation in the fusion blocks.
            fuse_op: "cat" concatenates the two maps that a block fuses, "sum" adds them.
            fusion_block: kind of the fusion blocks, see `csp_blocks.FusionBlock`.
            project_input: "always" projects every map of the backbone; "if_needed" only those whose channels
                differ from `hidden_dim`.
            eval_spatial_size: (height, width) of evaluation images, whose position tables are computed now.

        Raises:
            ConfigError: if the settings for the levels do not agree, `num_encoder_layers` is negative, or
                `hidden_dim` is not a multiple of 4 and of `nhead`.
        """
        super().__init__()
        if num_encoder_layers < 0:
            raise ConfigError(
                f"HybridEncoder.num_encoder_layers is {num_encoder_layers}, expected at least 0"
            )
        levels = len(in_channels)
        _check_levels(in_channels, feat_strides, use_encoder_idx)
        _check_width(hidden_dim, nhead)
        self.in_channels = list(in_channels)
        self.feat_strides = list(feat_strides)
        self.hidden_dim = hidden_dim
        self.use_encoder_idx = (
            list(use_encoder_idx) if num_encoder_layers else []
        )
        self.pe_temperature = pe_temperature
        self.out_channels = [hidden_dim] * levels
        self.out_strides = list(feat_strides)
        self.fuse_op = fuse_op

        def fusion() -> RepNCSPELAN4:
            return build_fusion_block(
                hidden_dim, fuse_op, fusion_block, expansion, depth_mult, act
            )

        self.input_proj = nn.ModuleList()
        for channels in in_channels:
            if project_input == "if_needed" and channels == hidden_dim:
                self.input_proj.append(nn.Identity())
            else:
                self.input_proj.append(input_projection(channels, hidden_dim))
        self.encoder = nn.ModuleList(
            TransformerEncoder(
                hidden_dim,
                nhead,
                dim_feedforward,
                dropout,
                enc_act,
                num_encoder_layers,
            )
            for _ in self.use_encoder_idx
        )
        self.lateral_convs = nn.ModuleList(
            ConvNorm(hidden_dim, hidden_dim, 1) for _ in range(levels - 1)
        )
        self.fpn_blocks = nn.ModuleList(fusion() for _ in range(levels - 1))
        self.downsample_convs = nn.ModuleList(
            nn.Sequential(SCDown(hidden_dim)) for _ in range(levels - 1)
        )
        self.pan_blocks = nn.ModuleList(fusion() for _ in range(levels - 1))
        if eval_spatial_size:
            self._make_position_tables(*eval_spatial_size)

    def _make_position_tables(self, height: int, width: int) -> None:
        """Precompute the position tables for images of a size; they are cached."""
        for level in self.use_encoder_idx:
            stride = self.feat_strides[level]
            position_table(
                height // stride,
                width // stride,
                self.hidden_dim,
                self.pe_temperature,
                torch.get_default_device(),
            )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Fuse the levels.

        Args:
            maps: one map per level, `[B, C_l, h, w]`, fine to coarse, each half the size of the one before.

        Returns:
            One map per level, `[B, D, h, w]`, of the same sizes.
        """
        maps = [
            project(x) for project, x in zip(self.input_proj, maps, strict=True)
        ]
        for encoder, level in zip(self.encoder, self.use_encoder_idx):
            maps[level] = self._attend(encoder, maps[level])
        return self._bottom_up(self._top_down(maps))

    def coarsest_attention(self) -> tuple[nn.Module, nn.Module] | None:
        """Return the attention layers of the coarsest level, and the layer whose input is their map.

        None if this level has no attention.
        """
        last = len(self.in_channels) - 1
        if not last or last not in self.use_encoder_idx:
            return None
        layers = self.encoder[self.use_encoder_idx.index(last)]
        return layers, self.lateral_convs[0]

    def _attend(self, encoder: nn.Module, x: Tensor) -> Tensor:
        """Apply the attention layers of a level to its map, `[B, D, h, w]`."""
        height, width = x.shape[-2:]
        position = position_table(
            height, width, self.hidden_dim, self.pe_temperature, x.device
        )
        tokens = encoder(
            flatten_map(x).transpose(1, 2), position
        )  # [B, h*w, D]
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    def _top_down(self, maps: list[Tensor]) -> list[Tensor]:
        """Fuse each level with the coarser one above it, from the coarsest level down (FPN)."""
        fused = [maps[-1]]
        for lateral, block, finer in zip(
            self.lateral_convs, self.fpn_blocks, reversed(maps[:-1])
        ):
            fused[0] = lateral(fused[0])
            above = F.interpolate(fused[0], scale_factor=2.0, mode="nearest")
            fused.insert(0, block(self._joined(above, finer)))
        return fused

    def _bottom_up(self, maps: list[Tensor]) -> list[Tensor]:
        """Fuse each level with the finer one below it, from the finest level up (PAN)."""
        fused = [maps[0]]
        for down, block, coarser in zip(
            self.downsample_convs, self.pan_blocks, maps[1:]
        ):
            fused.append(block(self._joined(down(fused[-1]), coarser)))
        return fused

    def _joined(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the input of a fusion block for two maps `[B, D, h, w]`."""
        return a + b if self.fuse_op == "sum" else torch.cat([a, b], 1)


class TransformerEncoder(nn.Module):
    """A stack of attention layers without a final norm."""

    def __init__(
        self,
        width: int,
        nhead: int,
        dim_feedforward: int,
        dropout: float,
        act: str,
        num_layers: int,
    ) -> None:
        super().__init__()
        first = TransformerEncoderLayer(
            width, nhead, dim_feedforward, dropout, act
        )
        self.layers = nn.ModuleList([first])
        for _ in range(num_layers - 1):
            layer = TransformerEncoderLayer(
                width, nhead, dim_feedforward, dropout, act
            )
            # In the published recipe all layers start from the same weights.
            layer.load_state_dict(first.state_dict())
            self.layers.append(layer)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Map tokens `[B, N, D]` with position codes `[1, N, D]` to `[B, N, D]`."""
        for layer in self.layers:
            tokens = layer(tokens, position)
        return tokens


class TransformerEncoderLayer(nn.Module):
    """Self-attention with norms after the sums; position codes enter queries and keys, but not values."""

    def __init__(
        self,
        width: int,
        nhead: int,
        dim_feedforward: int,
        dropout: float,
        act: str,
    ) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(
            width, nhead, dropout, batch_first=True
        )
        self.linear1 = nn.Linear(width, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.activation = build_activation(act)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Map tokens `[B, N, D]` with position codes `[1, N, D]` to `[B, N, D]`."""
        query = tokens + position
        attended, _ = self.self_attn(query, query, tokens, need_weights=False)
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.linear2(
            self.dropout(self.activation(self.linear1(tokens)))
        )
        return self.norm2(tokens + self.dropout(hidden))


@lru_cache(maxsize=64)
def position_table(
    height: int, width: int, dim: int, temperature: float, device: torch.device
) -> Tensor:
    """Return the sine position codes of the tokens of a map, `[1, height * width, dim]`, in row-major order.

    Row y * width + x is [sin(y w), cos(y w), sin(x w), cos(x w)] with w_i = temperature^(-i / (dim / 4)). On
    square maps this is the official table; on other maps the official table is misaligned
    (docs/decisions/0003).

    Args:
        height: rows of the map.
        width: columns of the map.
        dim: channels of a token, a multiple of 4.
        temperature: base of the frequencies w.
        device: device of the table.

    Example:
        >>> position_table(1, 2, 4, 10000, torch.device("cpu"))
        tensor([[[0.0000, 1.0000, 0.0000, 1.0000],
                 [0.0000, 1.0000, 0.8415, 0.5403]]])
    """
    with torch.inference_mode(False), torch.no_grad():
        quarter = dim // 4
        exponent = torch.arange(quarter, dtype=torch.float32) / quarter
        frequency = 1.0 / temperature**exponent
        y = torch.arange(height, dtype=torch.float32)[:, None] * frequency
        x = torch.arange(width, dtype=torch.float32)[:, None] * frequency
        rows = torch.cat([y.sin(), y.cos()], 1)[:, None].expand(-1, width, -1)
        columns = torch.cat([x.sin(), x.cos()], 1)[None].expand(height, -1, -1)
        table = torch.cat([rows, columns], 2)  # [height, width, dim]
        return table.reshape(1, height * width, dim).to(device)


def build_fusion_block(
    hidden_dim: int,
    fuse_op: FuseOp,
    kind: FusionBlock,
    expansion: float,
    depth_mult: float,
    act: str,
) -> RepNCSPELAN4:
    """Return a fusion block whose output has `hidden_dim` channels; arguments as for `HybridEncoder`."""
    inputs = hidden_dim if fuse_op == "sum" else 2 * hidden_dim
    inner = round(expansion * hidden_dim // 2)
    blocks = round(3 * depth_mult)
    return RepNCSPELAN4(
        inputs,
        hidden_dim,
        2 * hidden_dim,
        inner,
        blocks,
        act=act,
        kind=kind,
    )


def input_projection(channels: int, hidden_dim: int) -> nn.Sequential:
    """Return a 1x1 convolution with batch norm, `[B, channels, H, W]` to `[B, hidden_dim, H, W]`."""
    conv = nn.Conv2d(channels, hidden_dim, 1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=BatchNorm2d(hidden_dim)))


def _check_levels(
    in_channels: Sequence[int],
    feat_strides: Sequence[int],
    use_encoder_idx: Sequence[int],
) -> None:
    levels = len(in_channels)
    if len(feat_strides) != levels:
        raise ConfigError(
            f"HybridEncoder.in_channels {list(in_channels)} and feat_strides {list(feat_strides)} "
            f"differ in length"
        )
    if any(not 0 <= level < levels for level in use_encoder_idx):
        raise ConfigError(
            f"HybridEncoder.use_encoder_idx is {list(use_encoder_idx)}, expected levels from 0 to "
            f"{levels - 1}"
        )


def _check_width(hidden_dim: int, nhead: int) -> None:
    if hidden_dim % 4 or hidden_dim % nhead:
        raise ConfigError(
            f"HybridEncoder.hidden_dim {hidden_dim} must be a multiple of 4 and of nhead {nhead}"
        )
