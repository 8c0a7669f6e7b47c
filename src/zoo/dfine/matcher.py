"""Costs of matches (DETR, Carion et al., 2020, section 3.1, with focal class costs)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...core.durations import EpochLength
from ...core.errors import ConfigError, NumericsError
from ...core.registry import register
from ...ops.boxes import box_iou, cxcywh_to_xyxy, pairwise_l1_and_giou
from .assignment import Pairs, solve_assignments

COSTS = ("cost_class", "cost_bbox", "cost_giou")

_COSTS_AT_ONCE = {True: 1 << 17, False: 1 << 23}
"""Costs computed at a time on the host (True) and on a device (False)."""


@register()
class HungarianMatcher(nn.Module):
    """Optimal one-to-one matching of predictions and targets by class, L1 and GIoU costs.

    From `matcher_change_epoch` on the cost is minus the class probability times a power of the IoU (DEIMv2,
    Huang et al., 2025): late in training a match must be what would be scored as one.
    """

    __role__ = "matcher"
    __share__ = ["use_focal_loss"]

    def __init__(
        self,
        weight_dict: Mapping[str, float],
        use_focal_loss: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        matcher_change_epoch: EpochLength | None = None,
        iou_order_alpha: float = 4.0,
    ) -> None:
        """Store the weights.

        Args:
            weight_dict: weights of `cost_class`, `cost_bbox` and `cost_giou`.
            use_focal_loss: class costs in the form of the focal loss; otherwise minus the softmax
                probability.
            alpha: balance of the focal cost.
            gamma: exponent of the focal cost.
            matcher_change_epoch: first epoch of the late cost; None disables it.
            iou_order_alpha: power of the IoU in the late cost.
        """
        super().__init__()
        if set(weight_dict) != set(COSTS) or not any(weight_dict.values()):
            raise ConfigError(
                f"HungarianMatcher.weight_dict has {dict(weight_dict)}, expected {', '.join(COSTS)}, not all "
                f"zero"
            )
        self.weights = {name: float(weight_dict[name]) for name in COSTS}
        self.use_focal_loss, self.alpha, self.gamma = use_focal_loss, alpha, gamma
        self.matcher_change_epoch = matcher_change_epoch
        self.iou_order_alpha = iou_order_alpha
        self.late = False

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, 0-based, from which the late cost may be used."""
        self.late = (
            self.matcher_change_epoch is not None and epoch >= self.matcher_change_epoch
        )

    def forward(
        self,
        outputs: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Match one head.

        Args:
            outputs: `pred_logits [B, Q, C]`, `pred_boxes [B, Q, 4]` (cxcywh).
            targets: for each image `labels [T]`, `boxes [T, 4]` (cxcywh).

        Returns:
            `indices`: for each image (queries, targets), int64 on the CPU, ordered by query.
        """
        counts = [len(target["labels"]) for target in targets]
        pairs = self.match(
            [(outputs["pred_logits"][None], outputs["pred_boxes"][None])],
            torch.cat([t["labels"] for t in targets]),
            torch.cat([t["boxes"] for t in targets]),
            counts,
        )
        indices = []
        start = 0
        for image, count in enumerate(counts):
            of_image = pairs.image == image
            query, target = (
                torch.from_numpy(pairs.query[of_image]),
                torch.from_numpy(pairs.target[of_image]) - start,
            )
            order = query.argsort()
            indices.append((query[order], target[order]))
            start += count
        return {"indices": indices}

    @torch.no_grad()
    def match(
        self,
        heads: list[tuple[Tensor, Tensor]],
        labels: Tensor,
        boxes: Tensor,
        counts: list[int],
    ) -> Pairs:
        """Match several heads with one transfer to the host.

        Args:
            heads: stacks of (logits `[K, B, Q, C]`, boxes `[K, B, Q, 4]` cxcywh); heads count on through the
                stacks. A stack with C = 1 knows no classes.
            labels: of all images end to end, `[T]`.
            boxes: likewise, `[T, 4]` cxcywh.
            counts: number of targets of each image.

        Raises:
            NumericsError: if a cost is not finite; the message names the term and the image.
        """
        if not len(labels):
            return solve_assignments(
                np.zeros((0, len(counts), 0, 0), np.float32), counts
            )
        labels, boxes = (
            pad_sequence(t.split(counts), batch_first=True)
            for t in (labels, boxes.float())
        )
        costs = (
            torch.cat(
                [
                    self._costs(logits, predicted, labels, boxes)
                    for logits, predicted in heads
                ]
            )
            .cpu()
            .numpy()
        )
        if not np.isfinite(costs).all():
            raise NumericsError(self._describe_non_finite_cost(heads, labels, boxes))
        return solve_assignments(costs, counts)

    def _costs(
        self, logits: Tensor, predicted: Tensor, labels: Tensor, boxes: Tensor
    ) -> Tensor:
        """Return the cost of every target with every query of its image, `[K, B, T, Q]`; T is padded.

        Works through (head, image) pairs in pieces: as large as a cache on the host, in one go on a device.
        """
        heads, batch, queries, _ = logits.shape
        logits = logits.flatten(0, 1).float()
        predicted = predicted.flatten(0, 1).float()
        image = torch.arange(heads * batch, device=logits.device) % batch
        piece = max(
            1,
            _COSTS_AT_ONCE[logits.device.type == "cpu"] // (queries * labels.shape[1]),
        )
        pieces = [
            self._weighted(
                logits[i : i + piece],
                predicted[i : i + piece],
                labels[image[i : i + piece]],
                boxes[image[i : i + piece]],
            )
            for i in range(0, heads * batch, piece)
        ]
        return torch.cat(pieces).unflatten(0, (heads, batch))

    def _weighted(self, *arguments: Tensor) -> Tensor:
        terms = self._terms(*arguments)
        if self.late:
            return terms["late cost"]
        total = terms["cost_class"].mul_(self.weights["cost_class"])
        for name in COSTS[1:]:
            total.add_(terms[name], alpha=self.weights[name])
        return total

    def _terms(
        self, logits: Tensor, predicted: Tensor, labels: Tensor, boxes: Tensor
    ) -> dict[str, Tensor]:
        """Return each unweighted cost, `[n, T, Q]`, for logits `[n, Q, C]`, predicted `[n, Q, 4]`, labels
        `[n, T]`, boxes `[n, T, 4]`."""
        columns = torch.zeros_like(labels) if logits.shape[-1] == 1 else labels
        columns = columns[..., None].expand(-1, -1, logits.shape[1])
        if self.late:
            p = (
                (logits.sigmoid() if self.use_focal_loss else logits.softmax(-1))
                .transpose(1, 2)
                .gather(1, columns)
            )
            iou = box_iou(
                cxcywh_to_xyxy(boxes)[:, :, None], cxcywh_to_xyxy(predicted)[:, None]
            )
            return {"late cost": -p * iou**self.iou_order_alpha}
        if self.use_focal_loss:
            p = logits.transpose(1, 2).gather(1, columns).sigmoid_()
            class_cost = (
                (1 - p).pow_(self.gamma).mul_(-self.alpha).mul_((p + 1e-8).log_())
            )
            class_cost -= (
                p.pow(self.gamma).mul_(self.alpha - 1).mul_((1 - p).add_(1e-8).log_())
            )
        else:
            class_cost = -logits.softmax(-1).transpose(1, 2).gather(1, columns)
        l1, giou = pairwise_l1_and_giou(boxes, predicted)
        return {"cost_class": class_cost, "cost_bbox": l1, "cost_giou": giou.neg_()}

    def _describe_non_finite_cost(
        self,
        heads: list[tuple[Tensor, Tensor]],
        labels: Tensor,
        boxes: Tensor,
    ) -> str:
        for logits, predicted in heads:
            for row_logits, row_boxes in zip(logits.float(), predicted.float()):
                for name, term in self._terms(
                    row_logits, row_boxes, labels, boxes
                ).items():
                    bad = ~torch.isfinite(term).flatten(1).all(1)
                    if bad.any():
                        image = int(bad.nonzero()[0])
                        return f"matching {name} is not finite for image {image} of {len(bad)} in the batch"
        return "the matching cost is not finite although each of its terms is"
