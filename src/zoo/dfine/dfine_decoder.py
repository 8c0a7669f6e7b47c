"""D-FINE's decoder: the module that owns all weights, selects queries and runs the stack of layers.

Every part that can be read alone has its own file: the checks of settings (`decoder_settings`), the tokens
(`decoder_input`), the selection of queries (`query_selection`, `denoising`), the layers (`decoder_stack`,
`decoder_layers`), the heads (`decoder_heads`) and the results for the loss (`decoder_outputs`). Letters:
B images, S tokens, Q queries, C classes, D channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.registry import register
from .decoder_heads import (
    Heads,
    QueryPosition,
    build_box_heads,
    build_position_head,
    build_query_projection,
    initialize_heads,
    keep_heads,
)
from .decoder_input import (
    build_input_projections,
    extended_strides,
    flatten_levels,
    level_shapes,
)
from .decoder_layers import MLP, DecoderLayer, FeedForward, Norm
from .decoder_outputs import training_outputs
from .decoder_settings import check_layers, check_levels, check_minimum
from .decoder_stack import TransformerDecoder
from .denoising import DenoisingQueries, make_denoising_queries
from .query_selection import (
    SelectMethod,
    gather_tokens,
    make_anchors,
    select_tokens,
)


@register()
class DFINETransformer(nn.Module):
    """D-FINE's decoder with query selection, denoising and all heads."""

    __role__ = "decoder"
    __share__ = ["num_classes", "eval_spatial_size"]

    anchors: Tensor
    valid_mask: Tensor

    def __init__(
        self,
        num_classes: int = 80,
        hidden_dim: int = 256,
        num_queries: int = 300,
        feat_channels: Sequence[int] = (512, 1024, 2048),
        feat_strides: Sequence[int] = (8, 16, 32),
        num_levels: int = 3,
        num_points: int | Sequence[int] = 4,
        nhead: int = 8,
        num_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.0,
        activation: str = "relu",
        mlp_act: str = "relu",
        norm: Norm = "layer",
        feed_forward: FeedForward = "mlp",
        gateway: bool = True,
        query_position: QueryPosition = "refined",
        query_projection: bool = True,
        share_box_head: bool = False,
        num_denoising: int = 100,
        label_noise_ratio: float = 0.5,
        box_noise_scale: float = 1.0,
        learn_query_content: bool = False,
        eval_spatial_size: Sequence[int] | None = None,
        eval_idx: int = -1,
        eps: float = 1e-2,
        aux_loss: bool = True,
        cross_attn_method: Literal["default", "discrete"] = "default",
        query_select_method: SelectMethod = "default",
        reg_max: int = 32,
        reg_scale: int | float = 4.0,
        layer_scale: int | float = 1,
    ) -> None:
        """Build the layers.

        Args:
            num_classes: number of classes, C.
            hidden_dim: channels of tokens and queries, D.
            num_queries: number of queries, the maximum number of objects found in an image, Q.
            feat_channels: channels of the encoder's maps, fine to coarse.
            feat_strides: strides of the encoder's maps, in pixels.
            num_levels: number of levels that the decoder reads. If there are fewer maps, coarser levels are
                added.
            num_points: number of sampling points in each level, or one number for all levels.
            nhead: number of attention heads.
            num_layers: number of decoder layers.
            dim_feedforward: hidden width of the feed-forward parts; SwiGLU has half of it.
            dropout: probability of dropout in the layers.
            activation: activation of the feed-forward parts and of the quality heads: relu (D-FINE) or silu
                (DEIM, DEIMv2, RT-DETRv4).
            mlp_act: activation of the position head and of all box heads.
            norm: norm of the layers: "layer" (D-FINE) or "rms" (DEIMv2).
            feed_forward: feed-forward parts: "mlp" (D-FINE) or "swiglu" (DEIMv2).
            gateway: mix queries and cross-attention by learned gates; False adds them.
            query_position: "refined" computes position codes for the boxes of each layer (D-FINE); "initial"
                computes them once, from the initial boxes, with one more layer in the position head (DEIMv2).
            query_projection: project and normalize the tokens from which queries are selected (D-FINE);
                False selects from the tokens themselves (DEIMv2).
            share_box_head: one box head for all layers up to `eval_idx`.
            num_denoising: number of positive denoising queries per image; 0 disables denoising.
            label_noise_ratio: see `make_denoising_queries`.
            box_noise_scale: see `make_denoising_queries`.
            learn_query_content: start queries from learned vectors instead of the selected tokens.
            eval_spatial_size: (height, width) of images whose anchors are stored in the checkpoint.
            eval_idx: index of the layer whose output is used; negative numbers count from the last.
            eps: margin at the border of the image, 0..1, in which anchors are not used.
            aux_loss: return what the auxiliary losses need.
            cross_attn_method: "default" interpolates; "discrete" reads the nearest pixel.
            query_select_method: see `select_tokens`.
            reg_max: number of bins less one, K - 1.
            reg_scale: scale R of `distance_to_box`. The official files give an integer, which the checkpoint
                keeps as such.
            layer_scale: width of the layers after `eval_idx` relative to `hidden_dim`, at least 1.

        Raises:
            ConfigError: if a number is out of range, or the settings for the levels do not agree.
        """
        super().__init__()
        if isinstance(num_points, int):
            points = [num_points] * num_levels
        else:
            points = list(num_points)
        if eval_idx < 0:
            eval_idx += num_layers
        check_levels(feat_channels, feat_strides, num_levels, points)
        check_layers(num_layers, eval_idx, layer_scale, reg_max)
        check_minimum("num_classes", num_classes, 1)
        check_minimum("num_queries", num_queries, 1)
        check_minimum("num_denoising", num_denoising, 0)
        self.num_classes = num_classes
        self.hidden_dim = hidden_dim
        self.num_queries = num_queries
        self.num_layers = num_layers
        self.feat_channels = list(feat_channels)
        self.feat_strides = extended_strides(feat_strides, num_levels)
        self.nhead = nhead
        self.reg_max = reg_max
        self.eval_idx = eval_idx
        self.eps = eps
        self.num_denoising = num_denoising
        self.label_noise_ratio = label_noise_ratio
        self.box_noise_scale = box_noise_scale
        self.learn_query_content = learn_query_content
        self.aux_loss = aux_loss
        self.query_select_method = query_select_method
        self.query_position = query_position
        self.share_box_head = share_box_head
        self.eval_spatial_size = (
            tuple(eval_spatial_size) if eval_spatial_size else None
        )

        self.up = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
        scale = torch.tensor([reg_scale])  # int64 for an integer
        self.reg_scale = nn.Parameter(scale, requires_grad=False)
        if self.eval_spatial_size:
            shapes = level_shapes(self.eval_spatial_size, self.feat_strides)
            anchors, valid = make_anchors(
                shapes, eps, torch.get_default_device()
            )
            self.register_buffer("anchors", anchors.clone())
            self.register_buffer("valid_mask", valid.clone())
        self.input_proj = build_input_projections(
            feat_channels, hidden_dim, num_levels
        )

        def build_layer(scale: float) -> DecoderLayer:
            return DecoderLayer(
                round(scale * hidden_dim),
                nhead,
                round(scale * dim_feedforward),
                dropout,
                activation,
                points,
                discrete=cross_attn_method == "discrete",
                norm=norm,
                feed_forward=feed_forward,
                gateway=gateway,
            )

        self.decoder = self._build_layers(build_layer, layer_scale, activation)
        self._build_heads(self.decoder.widths, mlp_act, query_projection)

    # ---- construction ----

    def _build_layers(
        self,
        build_layer: Callable[[float], DecoderLayer],
        layer_scale: float,
        activation: str,
    ) -> TransformerDecoder:
        """Build the stack of layers.

        As in the published recipe, all layers up to `eval_idx` start from the same weights, and all layers
        after it start from other, common weights.
        """
        regular = build_layer(1)
        wide = build_layer(layer_scale)
        num_regular = self.eval_idx + 1
        num_wide = self.num_layers - num_regular
        layers = [copy.deepcopy(regular) for _ in range(num_regular)]
        layers += [copy.deepcopy(wide) for _ in range(num_wide)]
        widths = [self.hidden_dim] * num_regular
        widths += [round(layer_scale * self.hidden_dim)] * num_wide
        return TransformerDecoder(
            layers,
            widths,
            self.reg_max,
            self.up,
            self.reg_scale,
            self.eval_idx,
            activation=activation,
            refines_position=self.query_position == "refined",
        )

    def _build_heads(
        self, widths: list[int], activation: str, projects: bool
    ) -> None:
        """Build and initialize the heads, and the embeddings of queries.

        Args:
            widths: channels of the queries in each layer.
            activation: activation of the position head and of the box heads.
            projects: whether tokens are projected before queries are selected.
        """
        width = self.hidden_dim
        classes = self.num_classes
        if self.num_denoising:
            self.denoising_class_embed = nn.Embedding(
                classes + 1, width, padding_idx=classes
            )
        if self.learn_query_content:
            self.tgt_embed = nn.Embedding(self.num_queries, width)
            nn.init.xavier_uniform_(self.tgt_embed.weight)
        self.query_pos_head = build_position_head(
            width, self.query_position, activation
        )
        self.enc_output = build_query_projection(width, projects)
        scores = 1 if self.query_select_method == "agnostic" else classes
        self.enc_score_head = nn.Linear(width, scores)
        self.enc_bbox_head = MLP(width, width, 4, 3, activation)
        self.dec_score_head = nn.ModuleList(
            nn.Linear(w, classes) for w in widths
        )
        self.pre_bbox_head = MLP(width, width, 4, 3, activation)
        self.dec_bbox_head = build_box_heads(
            widths,
            4 * (self.reg_max + 1),
            self.eval_idx + 1 if self.share_box_head else 0,
            activation,
        )
        initialize_heads(
            self.query_pos_head,
            (self.enc_score_head, *self.dec_score_head),
            (self.enc_bbox_head, self.pre_bbox_head, *self.dec_bbox_head),
        )

    # ---- forward ----

    def forward(
        self, maps: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Any]:
        """Detect objects.

        Args:
            maps: maps of the encoder, `[B, C_l, h, w]`, fine to coarse.
            targets: in training, `labels [T]` and `boxes [T, 4]` (cxcywh, 0..1) of each image. Without them,
                there are no denoising queries.

        Returns:
            `pred_logits [B, Q, C]` and `pred_boxes [B, Q, 4]` (cxcywh, 0..1). In training also what
            `DFINECriterion` needs.
        """
        memory, shapes = flatten_levels(maps, self.input_proj)
        denoising = self._denoising_queries(targets, num_tokens=memory.shape[1])
        content, reference_unact, first = self._select_queries(memory, shapes)
        mask = None
        if denoising is not None:
            content = torch.cat([denoising.content, content], 1)
            reference_unact = torch.cat(
                [denoising.reference_unact, reference_unact], 1
            )
            mask = denoising.mask
        heads = Heads(
            self.dec_bbox_head,
            self.dec_score_head,
            self.query_pos_head,
            self.pre_bbox_head,
        )
        layers = self.decoder(
            content, reference_unact, memory, shapes, heads, mask
        )
        if not self.training:
            return {
                "pred_logits": layers.logits[-1],
                "pred_boxes": layers.boxes[-1],
            }
        return training_outputs(
            layers,
            first,
            denoising,
            up=self.up,
            reg_scale=self.reg_scale,
            aux_loss=self.aux_loss,
            class_agnostic=self.query_select_method == "agnostic",
        )

    def convert_to_deploy(self) -> None:
        """Drop the heads that only training needs."""
        end = self.eval_idx + 1
        self.dec_score_head = keep_heads(
            self.dec_score_head, range(end - 1, end)
        )
        self.dec_bbox_head = keep_heads(self.dec_bbox_head, range(end))

    def _denoising_queries(
        self, targets: list[dict[str, Tensor]] | None, num_tokens: int
    ) -> DenoisingQueries | None:
        """Return denoising queries for the targets, or None if they are disabled or not needed."""
        enabled = self.training and self.aux_loss and self.num_denoising
        if not enabled or targets is None:
            return None
        return make_denoising_queries(
            targets,
            self.denoising_class_embed,
            num_classes=self.num_classes,
            num_queries=min(self.num_queries, num_tokens),
            num_denoising=self.num_denoising,
            label_noise_ratio=self.label_noise_ratio,
            box_noise_scale=self.box_noise_scale,
        )

    def _select_queries(
        self,
        memory: Tensor,
        shapes: list[tuple[int, int]],
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Select the most promising tokens as queries.

        Args:
            memory: tokens of the encoder, `[B, S, D]`.
            shapes: (height, width) of each level.

        Returns:
            Content `[B, Q, D]` and boxes before the sigmoid `[B, Q, 4]`, both detached. In training also the
            encoder's own `pred_logits` and `pred_boxes` for the selected tokens, else an empty dict.
        """
        anchors, valid = self._anchors(tuple(shapes), memory.device)
        tokens = self.enc_output(torch.where(valid, memory, 0.0))
        logits = self.enc_score_head(tokens)
        chosen = select_tokens(
            logits.detach(), self.num_queries, self.query_select_method
        )
        tokens = gather_tokens(tokens, chosen)
        logits = gather_tokens(logits, chosen)
        batch, queries = chosen.shape
        shift = self.enc_bbox_head(tokens).float()
        boxes_unact = shift + gather_tokens(
            anchors.expand(batch, -1, -1), chosen
        )
        content = tokens.detach()
        if self.learn_query_content:
            content = self.tgt_embed.weight[:queries].expand(batch, -1, -1)
        first = {}
        if self.training:
            first = {"pred_logits": logits, "pred_boxes": boxes_unact.sigmoid()}
        return content, boxes_unact.detach(), first

    def _anchors(
        self, shapes: tuple[tuple[int, int], ...], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return the anchors of levels of these shapes, and their validity, as in `make_anchors`.

        Evaluation at `eval_spatial_size` uses the anchors of the checkpoint.
        """
        image_hw = self.eval_spatial_size
        if (
            not self.training
            and image_hw
            and shapes == level_shapes(image_hw, self.feat_strides)
        ):
            return self.anchors, self.valid_mask
        return make_anchors(shapes, self.eps, device)
