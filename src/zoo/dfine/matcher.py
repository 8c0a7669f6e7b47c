"""Matching of queries and targets by cost (DETR, Carion et al., 2020, section 3.1, and focal class costs)."""

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

_COSTS_PER_PIECE_CPU = 1 << 17
"""Number of costs computed at a time on a CPU, where they fit the cache."""

_COSTS_PER_PIECE_DEVICE = 1 << 23
"""Number of costs computed at a time on other devices."""


@register()
class HungarianMatcher(nn.Module):
    """Optimal one-to-one matching of predictions and targets by class, L1 and GIoU costs.

    From `matcher_change_epoch` on, the cost is the negative product of the class probability and a power of
    the IoU (DEIMv2, Huang et al., 2025). Late in training, matches then agree with what evaluation rewards.
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
            use_focal_loss: compute class costs like the focal loss, instead of as the negative softmax
                probability.
            alpha: weight of positives in the focal cost, 0..1.
            gamma: exponent of the focal cost.
            matcher_change_epoch: first epoch of the late cost; None disables it.
            iou_order_alpha: power of the IoU in the late cost.

        Raises:
            ConfigError: if a weight is missing or unknown, or all are zero.
        """
        super().__init__()
        if set(weight_dict) != set(COSTS) or not any(weight_dict.values()):
            raise ConfigError(
                f"HungarianMatcher.weight_dict has {dict(weight_dict)}, expected {', '.join(COSTS)}, not all "
                f"zero"
            )
        self.weights = {name: float(weight_dict[name]) for name in COSTS}
        self.use_focal_loss = use_focal_loss
        self.alpha = alpha
        self.gamma = gamma
        self.matcher_change_epoch = matcher_change_epoch
        self.iou_order_alpha = iou_order_alpha
        self.late = False

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch, 0-based, which decides whether the late cost is used."""
        change_epoch = self.matcher_change_epoch
        self.late = change_epoch is not None and epoch >= change_epoch

    def forward(
        self,
        outputs: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Match one head.

        Args:
            outputs: `pred_logits [B, Q, C]`, `pred_boxes [B, Q, 4]` (cxcywh, 0..1).
            targets: `labels [T]` and `boxes [T, 4]` (cxcywh, 0..1) of each image.

        Returns:
            `indices`: a pair (queries, targets) of each image, int64 on the CPU, ordered by query.
        """
        counts = [len(target["labels"]) for target in targets]
        head = (outputs["pred_logits"][None], outputs["pred_boxes"][None])
        labels = torch.cat([target["labels"] for target in targets])
        boxes = torch.cat([target["boxes"] for target in targets])
        pairs = self.match([head], labels, boxes, counts)
        indices = []
        start = 0
        for image, count in enumerate(counts):
            of_image = pairs.image == image
            query = torch.from_numpy(pairs.query[of_image])
            target = torch.from_numpy(pairs.target[of_image]) - start
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
            heads: stacks of heads, each as (logits `[K, B, Q, C]`, boxes `[K, B, Q, 4]` cxcywh). Heads are
                numbered through all stacks. A stack with C = 1 does not distinguish classes.
            labels: classes of the targets of all images, concatenated, `[T]`.
            boxes: boxes of the same targets, `[T, 4]` cxcywh in 0..1.
            counts: number of targets of each image.

        Returns:
            The pairs of all heads and images.

        Raises:
            NumericsError: if a cost is not finite; the message names the term and the image.
        """
        if not len(labels):
            no_costs = np.zeros((0, len(counts), 0, 0), np.float32)
            return solve_assignments(no_costs, counts)
        labels = pad_sequence(labels.split(counts), batch_first=True)
        boxes = pad_sequence(boxes.float().split(counts), batch_first=True)
        parts = []
        for logits, predicted in heads:
            parts.append(self._costs(logits, predicted, labels, boxes))
        costs = torch.cat(parts).cpu().numpy()
        if not np.isfinite(costs).all():
            raise NumericsError(
                self._describe_non_finite_cost(heads, labels, boxes)
            )
        return solve_assignments(costs, counts)

    @torch.no_grad()
    def match_padded(
        self,
        logits: Tensor,
        predicted: Tensor,
        labels: Tensor,
        boxes: Tensor,
        counts: Tensor,
    ) -> Pairs:
        """Match one head with targets whose numbers are on the device, with one transfer to the host.

        Args:
            logits: `[B, Q, C]`.
            predicted: `[B, Q, 4]` cxcywh.
            labels: padded classes of the targets, `[B, T]`.
            boxes: padded boxes of the targets, `[B, T, 4]` cxcywh in 0..1.
            counts: number of targets of each image, `[B]`; these are its first rows.

        Returns:
            The pairs; `target` is the row of a target in its image.

        Raises:
            NumericsError: if the cost of a target is not finite.
        """
        costs = self._costs(logits[None], predicted[None], labels, boxes)
        packed = torch.cat([costs.flatten(), counts.to(costs.dtype)])
        on_host = packed.cpu().numpy()
        numbers = on_host[-len(counts) :].astype(np.int64)
        on_host = on_host[: costs.numel()].reshape(costs.shape)
        for image, number in enumerate(numbers):
            if not np.isfinite(on_host[0, image, :number]).all():
                raise NumericsError(
                    f"the matching cost of a teacher's detection is not finite for image {image} of "
                    f"{len(numbers)} in the batch"
                )
        pairs = solve_assignments(on_host, numbers.tolist())
        first = np.cumsum(numbers) - numbers
        return pairs._replace(target=pairs.target - first[pairs.image])

    def _costs(
        self, logits: Tensor, predicted: Tensor, labels: Tensor, boxes: Tensor
    ) -> Tensor:
        """Return the cost of every target with every query of its image.

        Pairs of a head and an image are processed in pieces that limit memory and fit the cache of a CPU.

        Args:
            logits: `[K, B, Q, C]`.
            predicted: `[K, B, Q, 4]` cxcywh.
            labels: padded labels, `[B, T]`.
            boxes: padded boxes, `[B, T, 4]` cxcywh.

        Returns:
            `[K, B, T, Q]` float32; T is padded.
        """
        heads, batch, queries, _ = logits.shape
        on_cpu = logits.device.type == "cpu"
        logits = logits.flatten(0, 1).float()
        predicted = predicted.flatten(0, 1).float()
        image = torch.arange(heads * batch, device=logits.device) % batch
        num_costs = _COSTS_PER_PIECE_CPU if on_cpu else _COSTS_PER_PIECE_DEVICE
        size = max(1, num_costs // (queries * labels.shape[1]))
        pieces = []
        for start in range(0, heads * batch, size):
            piece = slice(start, start + size)
            of_piece = image[piece]
            cost = self._weighted_cost(
                logits[piece],
                predicted[piece],
                labels[of_piece],
                boxes[of_piece],
            )
            pieces.append(cost)
        return torch.cat(pieces).unflatten(0, (heads, batch))

    def _weighted_cost(
        self, logits: Tensor, predicted: Tensor, labels: Tensor, boxes: Tensor
    ) -> Tensor:
        """Return the weighted sum of costs, `[n, T, Q]`; arguments as in `_terms`."""
        terms = self._terms(logits, predicted, labels, boxes)
        if self.late:
            return terms["late cost"]
        total = terms["cost_class"].mul_(self.weights["cost_class"])
        for name in COSTS[1:]:
            total.add_(terms[name], alpha=self.weights[name])
        return total

    def _terms(
        self, logits: Tensor, predicted: Tensor, labels: Tensor, boxes: Tensor
    ) -> dict[str, Tensor]:
        """Return each unweighted cost by name, `[n, T, Q]`.

        Args:
            logits: `[n, Q, C]` float32.
            predicted: `[n, Q, 4]` cxcywh.
            labels: `[n, T]`.
            boxes: `[n, T, 4]` cxcywh.
        """
        columns = torch.zeros_like(labels) if logits.shape[-1] == 1 else labels
        columns = columns[..., None].expand(
            -1, -1, logits.shape[1]
        )  # [n, T, Q]
        if self.late:
            p = logits.sigmoid() if self.use_focal_loss else logits.softmax(-1)
            p = p.transpose(1, 2).gather(1, columns)
            target_xyxy = cxcywh_to_xyxy(boxes)[:, :, None]
            predicted_xyxy = cxcywh_to_xyxy(predicted)[:, None]
            iou = box_iou(target_xyxy, predicted_xyxy)
            return {"late cost": -p * iou**self.iou_order_alpha}
        if self.use_focal_loss:
            p = logits.transpose(1, 2).gather(1, columns).sigmoid_()
            class_cost = self._focal_cost(p)
        else:
            class_cost = -logits.softmax(-1).transpose(1, 2).gather(1, columns)
        l1, giou = pairwise_l1_and_giou(boxes, predicted)
        return {
            "cost_class": class_cost,
            "cost_bbox": l1,
            "cost_giou": giou.neg_(),
        }

    def _focal_cost(self, p: Tensor) -> Tensor:
        """Return the focal loss of probabilities as positives, less that as negatives."""
        as_positive = (1 - p).pow_(self.gamma).mul_(-self.alpha)
        as_positive *= (p + 1e-8).log_()
        as_negative = p.pow(self.gamma).mul_(self.alpha - 1)
        as_negative *= (1 - p).add_(1e-8).log_()
        return as_positive.sub_(as_negative)

    def _describe_non_finite_cost(
        self,
        heads: list[tuple[Tensor, Tensor]],
        labels: Tensor,
        boxes: Tensor,
    ) -> str:
        """Return a message that names the first term and image with a cost that is not finite."""
        for logits, predicted in heads:
            for of_head, predicted_of_head in zip(
                logits.float(), predicted.float()
            ):
                terms = self._terms(of_head, predicted_of_head, labels, boxes)
                for name, term in terms.items():
                    bad = ~torch.isfinite(term).flatten(1).all(1)
                    if bad.any():
                        image = int(bad.nonzero()[0])
                        return f"matching {name} is not finite for image {image} of {len(bad)} in the batch"
        return "the matching cost is not finite although each of its terms is"
