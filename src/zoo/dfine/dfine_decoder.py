"""D-FINE's decoder.

It selects queries from the encoder's tokens and refines their boxes, layer by layer. The edges of a box are
predicted as distributions (`distribution.py`). Letters: B images, S tokens, Q queries, L queries including
those for denoising, C classes, D channels, K bins.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.registry import register
from ...core.validate import require
from ...ops.activations import inverse_sigmoid
from ...ops.batch_norm import BatchNorm2d
from ...ops.maps import flatten_map
from .decoder_layers import LQE, MLP, DecoderLayer, FeedForward, Norm
from .deformable_attention import split_heads
from .denoising import DenoisingQueries, make_denoising_queries
from .distribution import (
    distance_to_box,
    expected_distances,
    weighting_sequence,
)
from .query_selection import (
    SelectMethod,
    gather_tokens,
    make_anchors,
    select_tokens,
)

PRIOR_PROBABILITY = 0.01
"""Initial score of every class."""

POSITION_LIMIT = 10.0
"""Largest magnitude of a position code."""


class Layers(NamedTuple):
    """Results of the decoder's layers; denoising queries come first along L.

    The lists have one entry per layer in training, and one entry in all in eval mode.
    """

    boxes: list[Tensor]
    """Boxes, `[B, L, 4]` cxcywh in 0..1."""
    logits: list[Tensor]
    """Class logits, `[B, L, C]`."""
    corners: list[Tensor]
    """Logits of the edge distributions, `[B, L, 4 * K]`."""
    reference: Tensor
    """Initial boxes that distances refer to, `[B, L, 4]` cxcywh, detached."""
    pre_boxes: Tensor
    """The initial boxes with their graph, `[B, L, 4]`."""
    pre_logits: Tensor
    """Class logits of the first layer without quality offset, `[B, L, C]`; empty in eval mode."""


class TransformerDecoder(nn.Module):
    """The stack of decoder layers with their quality heads.

    Box and class heads belong to `DFINETransformer`, which passes them to `forward`.
    """

    project: Tensor | None
    """Weighting sequence W of a deployed decoder, `[K]`."""

    def __init__(
        self,
        layers: list[DecoderLayer],
        widths: list[int],
        num_heads: int,
        reg_max: int,
        up: nn.Parameter,
        reg_scale: nn.Parameter,
        eval_idx: int,
        *,
        activation: str = "relu",
        refines_position: bool = True,
    ) -> None:
        """Store the layers, and build their quality heads.

        Args:
            layers: the decoder layers.
            widths: channels of the queries in each layer.
            num_heads: number of attention heads.
            reg_max: number of bins less one.
            up: parameter of the weighting sequence, `[1]`.
            reg_scale: scale of distances, `[1]`.
            eval_idx: index of the layer whose output is used.
            activation: activation of the quality heads.
            refines_position: compute the position codes again for the boxes of each layer; otherwise those
                of the initial boxes are used in all layers.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.lqe_layers = nn.ModuleList(
            LQE(activation=activation) for _ in layers
        )
        self.refines_position = refines_position
        self.widths = widths
        self.num_heads = num_heads
        self.reg_max = reg_max
        self.eval_idx = eval_idx
        self.up = up
        self.reg_scale = reg_scale
        self.register_buffer("project", None, persistent=False)

    def forward(
        self,
        content: Tensor,
        reference_unact: Tensor,
        memory: Tensor,
        shapes: list[tuple[int, int]],
        heads: _Heads,
        mask: Tensor | None,
    ) -> Layers:
        """Run all layers, or in eval mode those up to `eval_idx`.

        Args:
            content: content of the queries, `[B, L, D]`.
            reference_unact: initial boxes before the sigmoid, `[B, L, 4]` cxcywh.
            memory: tokens of the encoder, `[B, S, D]`.
            shapes: (height, width) of each level.
            heads: box, class and position heads.
            mask: `[L, L]`, True where a query (row) must not see another; or None.

        Returns:
            The predictions of all layers, or in eval mode those of layer `eval_idx` alone.
        """
        weights = self._weights()
        # Sampling points take the type of the maps; bfloat16 would round them to 1/256 of the image.
        memory = memory.float()
        values = split_heads(memory, self.num_heads, shapes)
        x = content
        reference = reference_unact.sigmoid()
        located = reference  # boxes that the position codes stand for
        initial = reference.new_empty(0)
        pre_boxes = reference.new_empty(0)
        pre_logits = reference.new_empty(0)
        previous: Tensor | float = 0.0
        distances: Tensor | float = 0.0
        position = reference.new_empty(0)
        all_boxes = []
        all_logits = []
        all_corners = []
        for index, layer in enumerate(self.layers):
            width = self.widths[index]
            if width != x.shape[-1]:  # layers after eval_idx may be wider
                x = _stretch(x, width)
                memory = _stretch(memory, width)
                values = split_heads(memory, self.num_heads, shapes)
                previous = x.detach()
            if (
                index == 0
                or self.refines_position
                or width != position.shape[-1]
            ):
                position = _position_code(heads.position, located, width)
            x = layer(x, reference, values, position, mask)
            if index == 0:
                shift = heads.pre_box(x).float()
                pre_boxes = (shift + inverse_sigmoid(reference)).sigmoid()
                initial = pre_boxes.detach()
                if self.training:
                    pre_logits = heads.score[0](x)
            corners: Tensor = heads.box[index](x + previous).float() + distances
            moves = expected_distances(corners, weights)
            boxes = distance_to_box(initial, moves, self.reg_scale)
            if self.training or index == self.eval_idx:
                logits = heads.score[index](x)
                all_boxes.append(boxes)
                all_corners.append(corners)
                all_logits.append(logits + self.lqe_layers[index](corners))
            if index == self.eval_idx and not self.training:
                break
            distances = corners
            reference = boxes.detach()
            if self.refines_position:
                located = reference
            previous = x.detach()
        return Layers(
            all_boxes, all_logits, all_corners, initial, pre_boxes, pre_logits
        )

    def _weights(self) -> Tensor:
        """Return the weighting sequence W, `[K]`; a deployed decoder has computed it already."""
        if self.project is not None:
            return self.project
        return weighting_sequence(self.reg_max, self.up, self.reg_scale)

    def convert_to_deploy(self) -> None:
        """Drop the layers that only training needs, and compute the weighting sequence once."""
        up = self.up.double()
        reg_scale = self.reg_scale.double()
        self.project = weighting_sequence(self.reg_max, up, reg_scale).float()
        self.layers = self.layers[: self.eval_idx + 1]
        kept = range(self.eval_idx, self.eval_idx + 1)
        self.lqe_layers = _keep_heads(self.lqe_layers, kept)


class _Heads(NamedTuple):
    """Heads that `DFINETransformer` passes to its decoder."""

    box: nn.ModuleList
    """For each layer, queries `[B, L, D]` to logits of the edge distributions `[B, L, 4 * K]`."""
    score: nn.ModuleList
    """For each layer, queries to class logits `[B, L, C]`."""
    position: nn.Module
    """Boxes `[B, L, 4]` to position codes `[B, L, D]`."""
    pre_box: nn.Module
    """Queries of the first layer to shifts of their boxes before the sigmoid, `[B, L, 4]`."""


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
        query_position: Literal["refined", "initial"] = "refined",
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
        _check_levels(feat_channels, feat_strides, num_levels, points)
        _check_numbers(
            num_layers=num_layers,
            eval_idx=eval_idx,
            layer_scale=layer_scale,
            reg_max=reg_max,
            num_classes=num_classes,
            num_queries=num_queries,
            num_denoising=num_denoising,
        )
        self.num_classes = num_classes
        self.hidden_dim = hidden_dim
        self.num_queries = num_queries
        self.num_layers = num_layers
        self.feat_channels = list(feat_channels)
        self.feat_strides = _extended_strides(feat_strides, num_levels)
        self.num_inputs = len(feat_channels)
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
            self._store_anchors(self.eval_spatial_size)
        self.input_proj = self._build_input_projections()

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

    def _store_anchors(self, size: Sequence[int]) -> None:
        """Make the anchors of an image size, (height, width), a part of the state dict."""
        shapes = self._shapes_of(size)
        anchors, valid = make_anchors(
            shapes, self.eps, torch.get_default_device()
        )
        self.register_buffer("anchors", anchors.clone())
        self.register_buffer("valid_mask", valid.clone())

    def _build_input_projections(self) -> nn.ModuleList:
        """Build one projection per level; the first extra level is made from the last map."""
        width = self.hidden_dim
        projections: list[nn.Module] = []
        for channels in self.feat_channels:
            if channels == width:
                projections.append(nn.Identity())
            else:
                projections.append(_projection(channels, width, kernel_size=1))
        channels = self.feat_channels[-1]
        for _ in range(self.num_inputs, len(self.feat_strides)):
            projections.append(
                _projection(channels, width, kernel_size=3, stride=2)
            )
            channels = width
        return nn.ModuleList(projections)

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
            self.nhead,
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
        if self.query_position == "refined":
            self.query_pos_head = MLP(4, 2 * width, width, 2, activation)
        else:
            self.query_pos_head = MLP(4, width, width, 3, activation)
        self.enc_output = _query_projection(width, projects)
        scores = 1 if self.query_select_method == "agnostic" else classes
        self.enc_score_head = nn.Linear(width, scores)
        self.enc_bbox_head = MLP(width, width, 4, 3, activation)
        self.dec_score_head = nn.ModuleList(
            nn.Linear(w, classes) for w in widths
        )
        self.pre_bbox_head = MLP(width, width, 4, 3, activation)
        self.dec_bbox_head = self._build_box_heads(widths, activation)
        self._initialize_heads()

    def _build_box_heads(
        self, widths: list[int], activation: str
    ) -> nn.ModuleList:
        """Return one box head per layer; shared ones are the same module at several indices."""
        heads = nn.ModuleList()
        for index, width in enumerate(widths):
            if self.share_box_head and 0 < index <= self.eval_idx:
                heads.append(heads[0])
                continue
            outputs = 4 * (self.reg_max + 1)
            heads.append(MLP(width, width, outputs, 3, activation))
        return heads

    def _initialize_heads(self) -> None:
        """Let all class scores start at the prior probability, and all boxes at their references."""
        for linear in self.query_pos_head.linears:
            nn.init.xavier_uniform_(linear.weight)
        prior_logit = math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY))
        for score_head in (self.enc_score_head, *self.dec_score_head):
            nn.init.constant_(score_head.get_parameter("bias"), prior_logit)
        for box_head in (
            self.enc_bbox_head,
            self.pre_bbox_head,
            *self.dec_bbox_head,
        ):
            if isinstance(box_head, MLP):
                box_head.start_at_zero()

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
        memory, shapes = self._flatten(maps)
        denoising = self._denoising_queries(targets, num_tokens=memory.shape[1])
        content, reference_unact, first = self._select_queries(memory, shapes)
        mask = None
        if denoising is not None:
            content = torch.cat([denoising.content, content], 1)
            reference_unact = torch.cat(
                [denoising.reference_unact, reference_unact], 1
            )
            mask = denoising.mask
        heads = _Heads(
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
        return self._training_outputs(layers, first, denoising)

    def convert_to_deploy(self) -> None:
        """Drop the heads that only training needs."""
        end = self.eval_idx + 1
        self.dec_score_head = _keep_heads(
            self.dec_score_head, range(end - 1, end)
        )
        self.dec_bbox_head = _keep_heads(self.dec_bbox_head, range(end))

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

    def _flatten(
        self, maps: list[Tensor]
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Project the maps to D channels, make the coarser levels that have no map, and join all tokens.

        Returns:
            Tokens `[B, S, D]`, level by level and each in row-major order, and (height, width) of each level.
        """
        levels = [project(x) for project, x in zip(self.input_proj, maps)]
        coarsest = maps[-1]
        for level in range(len(maps), len(self.input_proj)):
            coarsest = self.input_proj[level](coarsest)
            levels.append(coarsest)
        shapes = [(int(x.shape[2]), int(x.shape[3])) for x in levels]
        flat = [flatten_map(x) for x in levels]
        return torch.cat(flat, 2).transpose(1, 2), shapes

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
            and shapes == self._shapes_of(image_hw)
        ):
            return self.anchors, self.valid_mask
        return make_anchors(shapes, self.eps, device)

    def _shapes_of(
        self, image_hw: Sequence[int]
    ) -> tuple[tuple[int, int], ...]:
        """Return (height, width) of each level for an image of (height, width)."""
        height, width = image_hw
        shapes = []
        for stride in self.feat_strides:
            shapes.append(
                (math.ceil(height / stride), math.ceil(width / stride))
            )
        return tuple(shapes)

    def _training_outputs(
        self,
        layers: Layers,
        first: dict[str, Tensor],
        denoising: DenoisingQueries | None,
    ) -> dict[str, Any]:
        """Return the dict that `DFINECriterion` reads.

        Args:
            layers: predictions of all layers, denoising queries first.
            first: the encoder's own predictions for the matching queries.
            denoising: the denoising queries, or None if there are none.
        """
        num_denoising = denoising.reference_unact.shape[1] if denoising else 0
        split = [num_denoising, first["pred_logits"].shape[1]]
        rows, teacher, pre = _outputs_of_part(layers, split, 1)
        out: dict[str, Any] = {
            **rows[-1],
            "up": self.up,
            "reg_scale": self.reg_scale,
        }
        if not self.aux_loss:
            return out
        out["aux_outputs"] = [row | teacher for row in rows[:-1]]
        out["enc_aux_outputs"] = [first]
        out["pre_outputs"] = pre
        out["enc_meta"] = {
            "class_agnostic": self.query_select_method == "agnostic"
        }
        if denoising is not None:
            rows, teacher, pre = _outputs_of_part(layers, split, 0)
            out["dn_outputs"] = [row | teacher for row in rows]
            out["dn_pre_outputs"] = pre
            out["dn_meta"] = {
                "dn_positive_idx": denoising.positive_idx,
                "dn_num_group": denoising.num_groups,
                "dn_num_split": split,
                "dn_chosen": denoising.chosen,
            }
        return out


def _outputs_of_part(
    layers: Layers,
    split: list[int],
    which: int,
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """Return the predictions for the denoising queries or for the matching queries.

    Args:
        layers: predictions of all layers for all queries.
        split: number of denoising queries, and of matching queries.
        which: 0 for denoising queries, 1 for matching queries.

    Returns:
        The predictions of each layer; those of the last layer as the teacher of all; those of the pre head.
    """

    def part(tensor: Tensor) -> Tensor:
        return tensor.split(split, dim=1)[which]

    rows = []
    for logits, boxes, corners in zip(
        layers.logits, layers.boxes, layers.corners
    ):
        row = {
            "pred_logits": part(logits),
            "pred_boxes": part(boxes),
            "pred_corners": part(corners),
            "ref_points": part(layers.reference),
        }
        rows.append(row)
    teacher = {
        "teacher_corners": rows[-1]["pred_corners"],
        "teacher_logits": rows[-1]["pred_logits"],
    }
    pre = {
        "pred_logits": part(layers.pre_logits),
        "pred_boxes": part(layers.pre_boxes),
    }
    return rows, teacher, pre


def _check_levels(
    feat_channels: Sequence[int],
    feat_strides: Sequence[int],
    num_levels: int,
    points: list[int],
) -> None:
    """Raise if the settings that have one entry per level do not agree."""
    num_maps = len(feat_channels)
    require(
        num_maps == len(feat_strides),
        f"DFINETransformer: feat_channels {list(feat_channels)} and feat_strides {list(feat_strides)} differ "
        f"in length",
    )
    require(
        num_maps <= num_levels,
        f"DFINETransformer: num_levels is {num_levels}, but there are {num_maps} feat_channels",
    )
    require(
        len(points) == num_levels,
        f"DFINETransformer: num_points {points} needs one number for each of {num_levels} levels",
    )


def _check_numbers(
    *,
    num_layers: int,
    eval_idx: int,
    layer_scale: float,
    reg_max: int,
    num_classes: int,
    num_queries: int,
    num_denoising: int,
) -> None:
    """Raise `ConfigError` for the first number out of range; `eval_idx` counts from the first layer."""
    require(
        0 <= eval_idx < num_layers,
        f"DFINETransformer: eval_idx must point at one of {num_layers} layers",
    )
    _check_minimum("layer_scale", layer_scale, 1)
    require(
        reg_max >= 4 and reg_max % 2 == 0,
        f"DFINETransformer: reg_max is {reg_max}, expected an even number from 4",
    )
    _check_minimum("num_classes", num_classes, 1)
    _check_minimum("num_queries", num_queries, 1)
    _check_minimum("num_denoising", num_denoising, 0)


def _check_minimum(name: str, value: float, minimum: int) -> None:
    require(
        value >= minimum,
        f"DFINETransformer: {name} is {value}, expected at least {minimum}",
    )


def _projection(
    in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1
) -> nn.Sequential:
    """Return a convolution with batch norm, `[B, in, h, w]` to `[B, out, h / stride, w / stride]`."""
    padding = kernel_size // 2
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, bias=False
    )
    nn.init.xavier_uniform_(conv.weight)
    norm = BatchNorm2d(out_channels)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm))


def _query_projection(width: int, is_used: bool) -> nn.Module:
    """Return a linear layer with LayerNorm from D to D channels, or the identity."""
    if not is_used:
        return nn.Identity()
    projection = nn.Linear(width, width)
    nn.init.xavier_uniform_(projection.weight)
    parts = OrderedDict(proj=projection, norm=nn.LayerNorm(width))
    return nn.Sequential(parts)


def _keep_heads(heads: nn.ModuleList, kept: range) -> nn.ModuleList:
    """Return the heads with those at other indices than `kept` replaced by the identity."""
    result = nn.ModuleList()
    for index, head in enumerate(heads):
        result.append(head if index in kept else nn.Identity())
    return result


def _extended_strides(strides: Sequence[int], num_levels: int) -> list[int]:
    """Return one stride per level; each extra level has twice the stride of the one before."""
    extended = list(strides)
    while len(extended) < num_levels:
        extended.append(extended[-1] * 2)
    return extended


def _position_code(head: nn.Module, boxes: Tensor, width: int) -> Tensor:
    """Return the position codes of boxes `[B, L, 4]` for a layer of a width, `[B, L, width]`."""
    code = head(boxes).clamp(-POSITION_LIMIT, POSITION_LIMIT)
    return code if width == code.shape[-1] else _stretch(code, width)


def _stretch(x: Tensor, width: int) -> Tensor:
    """Widen tokens `[B, N, D]` to `[B, N, width]` by repeating channels."""
    return F.interpolate(x, size=width, mode="nearest")
