"""D-FINE's training loss: the heads, matched pairs, normalizers and weights of each loss term.

The terms themselves are in `losses.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...core.contracts import TaughtDetections
from ...core.errors import ConfigError, NumericsError
from ...core.registry import register
from ...ops.boxes import cxcywh_to_xyxy, iou_and_giou
from ...runtime.distributed import sum_over_ranks, world_size
from .assignment import Pairs, no_pairs, unite_heads
from .distribution import box_to_bins, weighting_sequence
from .losses import (
    Balance,
    Matched,
    box_losses,
    box_losses_by_head,
    decoupled_distillation_loss,
    distillation_balance,
    fine_grained_localization_loss,
    focal_loss,
    matchability_aware_loss,
    soft_box_losses,
    soft_class_loss,
    varifocal_loss,
)
from .matcher import HungarianMatcher
from .prediction_heads import HeadStack, denoising_heads, matching_heads

CLASS_LOSSES = {
    "loss_vfl": varifocal_loss,
    "loss_mal": matchability_aware_loss,
    "loss_focal": focal_loss,
}

TERMS = {
    "vfl": ("loss_vfl",),
    "mal": ("loss_mal",),
    "focal": ("loss_focal",),
    "boxes": ("loss_bbox", "loss_giou"),
    "local": ("loss_fgl", "loss_ddf"),
}
"""Terms that each entry of the setting `losses` computes."""


class Normalizers(NamedTuple):
    """Divisors of the sums.

    They are means over ranks of the counts in a micro-batch, or in all micro-batches of an accumulation
    window.
    """

    targets: Tensor | float
    """Number of objects. It divides the class terms and, times the number of groups, all denoising terms."""
    union: Tensor | float
    """Number of pairs in the union of all matchings. It divides the box and localization terms."""
    share: float = 1.0
    """Fraction of the window's images in this micro-batch. It multiplies the distillation terms (means)."""


class _Batch(NamedTuple):
    """Targets of all images, concatenated."""

    labels: Tensor
    """`[T]` int64."""
    boxes: Tensor
    """`[T, 4]` float32, cxcywh in 0..1."""
    counts: list[int]
    """Number of targets of each image."""


class _Supervision(NamedTuple):
    """A stack of heads, the pairs that supervise it, and the divisors of its sums."""

    stack: HeadStack
    class_pairs: Matched
    """Pairs for class terms; each head has its own."""
    box_pairs: Matched
    """Pairs for box and localization terms; all heads share them, unless `by_head`."""
    class_normalizer: Tensor | float
    """Divisor of the class terms."""
    box_normalizer: Tensor | float
    """Divisor of the box and localization terms."""
    balance: Balance | None
    """Weights of matched and unmatched queries in the distillation term; None derives them from
    `box_pairs`."""
    by_head: bool = False
    """True if each head has its own `box_pairs`."""


@register()
class DFINECriterion(nn.Module):
    """Class, box, fine-grained localization and self-distillation losses over all heads of the decoder."""

    __role__ = "criterion"
    __share__ = ["num_classes"]
    __inject__ = ["matcher"]

    def __init__(
        self,
        matcher: HungarianMatcher,
        weight_dict: Mapping[str, float | None],
        losses: Sequence[Literal["vfl", "mal", "focal", "boxes", "local"]],
        alpha: float = 0.2,
        gamma: float = 2.0,
        num_classes: int = 80,
        reg_max: int = 32,
        boxes_weight_format: Literal["iou", "giou"] | None = None,
        mal_alpha: float | None = None,
        use_uni_set: bool = True,
    ) -> None:
        """Store the settings.

        Args:
            matcher: matcher that assigns queries to targets.
            weight_dict: weight of each term: `loss_vfl`, `loss_mal`, `loss_focal`, `loss_bbox`, `loss_giou`,
                `loss_fgl`, `loss_ddf`. Terms that are missing or None are not computed.
            losses: "vfl", "mal" or "focal" for classes, "boxes", and "local" for fine-grained localization
                and distillation.
            alpha: weight of negatives in the varifocal loss, and of positives in the focal loss, 0..1.
            gamma: focal exponent.
            num_classes: number of classes, C.
            reg_max: number of bins of an edge less one.
            boxes_weight_format: "iou" or "giou" multiplies the GIoU term of a pair by that value; "giou" also
                makes it the class target instead of the IoU.
            mal_alpha: weight of negatives in the matchability-aware loss; None uses 1.
            use_uni_set: supervise the boxes of all heads with the union of their matchings; False uses the
                matching of each head, as DEIMv2's smallest models do.

        Raises:
            ConfigError: if `weight_dict` has a term that `losses` does not compute, or `losses` has "local"
                without the union.
        """
        super().__init__()
        emitted: set[str] = set()
        for loss in losses:
            emitted.update(TERMS[loss])
        self.weights: dict[str, float] = {}
        for name, weight in weight_dict.items():
            if weight is not None:
                self.weights[name] = float(weight)
        idle = set(self.weights) - emitted
        if idle:
            raise ConfigError(
                f"DFINECriterion.weight_dict weighs {', '.join(sorted(idle))}, which none of losses "
                f"{list(losses)} computes"
            )
        if not use_uni_set and "local" in losses:
            raise ConfigError(
                "DFINECriterion.use_uni_set is False, but losses has 'local', which needs the union of all "
                "matchings; remove 'local', loss_fgl and loss_ddf, or set use_uni_set to True"
            )
        self.matcher = matcher
        self.use_uni_set = use_uni_set
        self.losses = list(losses)
        self.gamma = gamma
        self.num_classes = num_classes
        self.reg_max = reg_max
        self.alphas = {
            "loss_vfl": alpha,
            "loss_focal": alpha,
            "loss_mal": 1.0 if mal_alpha is None else mal_alpha,
        }
        self.boxes_weight_format = boxes_weight_format

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the matcher, 0-based; its cost may change."""
        self.matcher.set_epoch(epoch)

    def forward(
        self,
        outputs: dict[str, Any],
        targets: list[dict[str, Tensor]],
        normalizers: Normalizers | None = None,
    ) -> dict[str, Tensor]:
        """Compute all terms in float32.

        Args:
            outputs: outputs of `DFINETransformer` in training mode.
            targets: `labels [T]` int64 and `boxes [T, 4]` (cxcywh, 0..1) of each image.
            normalizers: normalizers of the whole accumulation window; None uses those of this batch over all
                ranks.

        Returns:
            Weighted scalars by name. Their sum is the loss.

        Raises:
            NumericsError: if a matching cost is not finite.
        """
        batch = _join_targets(targets)
        terms: dict[str, Tensor] = {}
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            supervisions, share = self._match(outputs, batch, normalizers)
            for supervision in supervisions:
                terms.update(self._class_terms(supervision, batch))
                terms.update(
                    self._box_terms(supervision, batch, outputs, share)
                )
            terms.update(self._teacher_term(outputs, supervisions[-1].stack))
        return terms

    @torch.no_grad()
    def count(
        self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]
    ) -> tuple[int, int]:
        """Return the number of objects and the number of pairs in the union of all matchings.

        Pass them to `window_normalizers`; arguments as in `forward`.
        """
        batch = _join_targets(targets)
        stacks = matching_heads(outputs, self.reg_max + 1)
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            pairs = self._pairs_of_heads(stacks, batch)
        return len(batch.labels), len(unite_heads(pairs).query)

    def window_normalizers(
        self,
        counts: Sequence[tuple[int, int]],
        images: Sequence[int],
        device: torch.device,
    ) -> list[Normalizers]:
        """Return the normalizers of each batch in an accumulation window.

        With them, the losses of all batches add up to the loss of one large batch.

        Args:
            counts: result of `count` for each batch.
            images: number of images in each batch, which weights the distillation terms.
            device: device of the losses.
        """
        num_targets = sum(targets for targets, _ in counts)
        num_union = sum(union for _, union in counts)
        whole = all_rank_normalizers(num_targets, num_union, device)
        return [whole._replace(share=number / sum(images)) for number in images]

    # ---- detections of a teacher ----

    def taught_terms(
        self, outputs: dict[str, Any], taught: TaughtDetections
    ) -> dict[str, Tensor]:
        """Compare the last decoder layer with a teacher's detections, in float32.

        Detections are matched like objects, by their most probable class. Each term is a sum over pairs,
        weighted by the teacher's score and divided by the sum of all scores. Queries without a pair have no
        term. The other layers learn from the last one by `loss_ddf`.

        Args:
            outputs: outputs of `DFINETransformer` in training mode.
            taught: detections of the same images.

        Returns:
            `loss_soft_cls`, the cross-entropy with the teacher's probabilities of all classes; and
            `loss_soft_bbox`, `loss_soft_giou` and `loss_soft_fgl` with the weights of these terms in
            `weight_dict`, if they have one. The score takes the place of the IoU in the last one.

        Raises:
            NumericsError: if a matching cost is not finite.
        """
        logits = outputs["pred_logits"].float()
        boxes = outputs["pred_boxes"].float()
        with torch.autocast(logits.device.type, enabled=False):
            on_host = self.matcher.match_padded(
                logits.detach(),
                boxes.detach(),
                taught.probabilities.argmax(-1),
                taught.boxes,
                taught.counts,
            )
            (pairs,) = _to_device([on_host], logits.device)
            scores = taught.scores[pairs.image, pairs.target]  # [M]
            targets = taught.boxes[pairs.image, pairs.target]  # [M, 4]
            sums = {
                "cls": soft_class_loss(
                    logits[pairs.image, pairs.query],
                    taught.probabilities[pairs.image, pairs.target],
                    scores,
                    taught.known,
                )
            }
            sums |= soft_box_losses(
                boxes[pairs.image, pairs.query], targets, scores
            )
            if "pred_corners" in outputs:
                sums["fgl"] = self._soft_localization_sum(
                    outputs, pairs, targets, scores
                )
        terms = {}
        for name, value in sums.items():
            weight = 1.0
            if name != "cls":
                weight = self.weights.get(f"loss_{name}", 0.0)
            if weight:
                terms[f"loss_soft_{name}"] = weight * value / taught.normalizer
        return terms

    def _soft_localization_sum(
        self,
        outputs: dict[str, Any],
        pairs: Matched,
        targets: Tensor,
        scores: Tensor,
    ) -> Tensor:
        """Return the fine-grained localization loss of the last layer, summed over pairs."""
        corners = outputs["pred_corners"].float()
        corners = corners.unflatten(-1, (4, self.reg_max + 1))[None]
        reference = outputs["ref_points"].detach().float()
        sums = self._localization_sums(
            corners, reference, pairs, targets, scores[None], outputs
        )
        return sums[0]

    # ---- step 1: match ----

    def _match(
        self,
        outputs: dict[str, Any],
        batch: _Batch,
        normalizers: Normalizers | None,
    ) -> tuple[list[_Supervision], float]:
        """Assign objects to the queries of all heads.

        Returns:
            The supervision of each stack, that of the denoising heads last, and the factor of the
            distillation terms (`Normalizers.share`).
        """
        num_targets = len(batch.labels)
        device = batch.labels.device
        stacks = matching_heads(outputs, self.reg_max + 1)
        try:
            pairs = self._pairs_of_heads(stacks, batch)
        except NumericsError:
            # The other ranks wait for this sum over ranks.
            all_rank_normalizers(num_targets, 0, device)
            raise
        meta = outputs.get("dn_meta")
        on_host = _split_by_stack(pairs, stacks)
        on_host.append(unite_heads(pairs))
        on_host.append(_denoising_pairs(batch.counts, meta))
        *pairs_of_stacks, union, dn_pairs = _to_device(on_host, device)
        if normalizers is None:
            num_union = len(union.query)
            normalizers = all_rank_normalizers(num_targets, num_union, device)

        supervisions = []
        balance = None
        for stack, own in zip(stacks, pairs_of_stacks):
            if stack.teacher_corners is not None:
                balance = distillation_balance(_matched_queries(stack, union))
            supervision = _Supervision(
                stack,
                own,
                union,
                normalizers.targets,
                normalizers.union,
                balance,
            )
            if not self.use_uni_set:
                supervision = supervision._replace(
                    box_pairs=own,
                    box_normalizer=normalizers.targets,
                    by_head=True,
                )
            supervisions.append(supervision)
        if meta:
            stack = denoising_heads(outputs, self.reg_max + 1)
            dn_pairs = dn_pairs._replace(
                query=torch.cat(meta["dn_positive_idx"])
            )
            own = _for_every_head(dn_pairs, len(stack.suffixes))
            normalizer = normalizers.targets * max(meta["dn_num_group"], 1)
            supervision = _Supervision(
                stack, own, dn_pairs, normalizer, normalizer, balance
            )
            supervisions.append(supervision)
        return supervisions, normalizers.share

    def _pairs_of_heads(self, stacks: list[HeadStack], batch: _Batch) -> Pairs:
        """Match the heads of all stacks; heads are numbered through all stacks."""
        heads = [
            (stack.logits.detach(), stack.boxes.detach()) for stack in stacks
        ]
        return self.matcher.match(
            heads, batch.labels, batch.boxes, batch.counts
        )

    # ---- step 2: class terms ----

    def _class_terms(
        self, supervision: _Supervision, batch: _Batch
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the weighted value of each class term of each head."""
        stack = supervision.stack
        logits = stack.logits
        pairs = supervision.class_pairs
        predicted = stack.boxes.detach()[pairs.head, pairs.image, pairs.query]
        predicted_xyxy = cxcywh_to_xyxy(predicted)
        target_xyxy = cxcywh_to_xyxy(batch.boxes[pairs.target])
        iou, giou = iou_and_giou(predicted_xyxy, target_xyxy)
        quality = giou if self.boxes_weight_format == "giou" else iou
        if logits.shape[-1] > 1:
            labels = batch.labels[pairs.target]
        else:  # a single foreground score
            labels = torch.zeros_like(pairs.target)
        for term, loss in CLASS_LOSSES.items():
            if term in self.weights:
                alpha = self.alphas[term]
                sums = loss(logits, pairs, labels, quality, alpha, self.gamma)
                values = sums / supervision.class_normalizer
                yield from self._weighted_terms(term, stack.suffixes, values)

    # ---- step 3: terms about where objects are ----

    def _box_terms(
        self,
        supervision: _Supervision,
        batch: _Batch,
        outputs: dict[str, Any],
        share: float,
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the weighted value of each term about boxes and their edges, for each head."""
        stack = supervision.stack
        pairs = supervision.box_pairs
        normalizer = supervision.box_normalizer
        targets = batch.boxes[pairs.target]
        if supervision.by_head:
            predicted = stack.boxes[pairs.head, pairs.image, pairs.query]
            losses = box_losses_by_head(
                predicted,
                targets,
                pairs.head,
                len(stack.boxes),
                self.boxes_weight_format,
            )
        else:
            predicted = stack.boxes[:, pairs.image, pairs.query]  # [K, M, 4]
            losses = box_losses(predicted, targets, self.boxes_weight_format)
        for term, sums in (
            ("loss_bbox", losses.l1),
            ("loss_giou", losses.giou),
        ):
            if term in self.weights:
                values = sums / normalizer
                yield from self._weighted_terms(term, stack.suffixes, values)
        if stack.corners is None or stack.reference is None:
            return
        if "loss_fgl" in self.weights:
            sums = self._localization_sums(
                stack.corners,
                stack.reference,
                pairs,
                targets,
                losses.iou,
                outputs,
            )
            values = sums / normalizer
            yield from self._weighted_terms("loss_fgl", stack.suffixes, values)
        if "loss_ddf" in self.weights and stack.teacher_corners is not None:
            sums = _distillation_sums(
                supervision, stack.corners, stack.teacher_corners, losses.iou
            )
            yield from self._weighted_terms(
                "loss_ddf", stack.suffixes, sums * share
            )

    def _localization_sums(
        self,
        corners: Tensor,
        reference: Tensor,
        pairs: Matched,
        targets: Tensor,
        iou: Tensor,
        outputs: dict[str, Any],
    ) -> Tensor:
        """Return the fine-grained localization loss of each decoder layer, `[L]`, summed over pairs."""
        up = outputs["up"].detach()
        reg_scale = outputs["reg_scale"].detach()
        bins = box_to_bins(
            reference[pairs.image, pairs.query],
            cxcywh_to_xyxy(targets),
            weighting_sequence(self.reg_max, up, reg_scale),
            reg_scale,
        )
        matched = corners[:, pairs.image, pairs.query]  # [L, M, 4, N]
        return fine_grained_localization_loss(
            matched, bins, iou[: len(corners)]
        )

    def _teacher_term(
        self, outputs: dict[str, Any], stack: HeadStack
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield a distillation loss of zero for the last denoising layer, which is the teacher itself."""
        if not outputs.get("dn_meta"):
            return
        if "loss_ddf" in self.weights and stack.corners is not None:
            yield (
                f"loss_ddf_dn_{len(stack.corners) - 1}",
                stack.corners.new_zeros(()),
            )

    def _weighted_terms(
        self, term: str, suffixes: list[str], values: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of a term in each head, and its value `[K]` times the weight of the term."""
        weighted = values * self.weights[term]
        for suffix, value in zip(suffixes, weighted.unbind()):
            yield term + suffix, value


def all_rank_normalizers(
    num_targets: int, num_union: int, device: torch.device
) -> Normalizers:
    """Return the mean counts over ranks, at least 1, without a host-device synchronization."""
    if world_size() == 1:
        return Normalizers(
            max(float(num_targets), 1.0), max(float(num_union), 1.0)
        )
    own = torch.tensor([num_targets, num_union], dtype=torch.float32)
    own = own.to(device, non_blocking=True)
    mean = sum_over_ranks(own) / world_size()
    targets, union = mean.clamp(min=1).unbind()
    return Normalizers(targets, union)


def _join_targets(targets: list[dict[str, Tensor]]) -> _Batch:
    """Concatenate the targets of all images."""
    labels = torch.cat([target["labels"] for target in targets])
    boxes = torch.cat([target["boxes"] for target in targets]).float()
    counts = [len(target["labels"]) for target in targets]
    return _Batch(labels, boxes, counts)


def _distillation_sums(
    supervision: _Supervision,
    corners: Tensor,
    teacher_corners: Tensor,
    iou: Tensor,
) -> Tensor:
    """Return the distillation loss of each decoder layer but the last, which is the teacher, `[L - 1]`."""
    stack = supervision.stack
    pairs = supervision.box_pairs
    students = len(corners) - 1
    assert (
        stack.teacher_logits is not None
    )  # it is set together with teacher_corners
    confidence = stack.teacher_logits.sigmoid().amax(-1)  # [B, Q]
    trust = confidence.repeat(students, 1, 1)  # [L - 1, B, Q]
    trust[:, pairs.image, pairs.query] = iou[:students]
    positive = _matched_queries(stack, pairs)
    balance = supervision.balance or distillation_balance(positive)
    return decoupled_distillation_loss(
        corners[:students], teacher_corners, trust, positive, balance
    )


def _denoising_pairs(counts: list[int], meta: dict[str, Any] | None) -> Pairs:
    """Pair each positive denoising query with the object that it was made from.

    The column of queries is zero here, because their positions are on the device already.

    Args:
        counts: number of objects of each image.
        meta: `dn_meta` of the outputs; None without denoising.
    """
    if not meta or not meta["dn_num_group"]:
        return no_pairs()
    num_groups = meta["dn_num_group"]
    chosen = meta.get("dn_chosen") or [None] * len(counts)
    images = []
    targets = []
    start = 0
    for index, (count, few) in enumerate(zip(counts, chosen)):
        objects = np.arange(count) if few is None else few.numpy()
        targets.append(np.tile(start + objects, num_groups))
        images.append(np.full(num_groups * len(objects), index))
        start += count
    image = np.concatenate(images)
    target = np.concatenate(targets)
    return Pairs(np.zeros_like(image), image, np.zeros_like(image), target)


def _split_by_stack(pairs: Pairs, stacks: list[HeadStack]) -> list[Pairs]:
    """Return the pairs of each stack, with heads numbered from the first head of the stack."""
    parts = []
    start = 0
    for stack in stacks:
        end = start + len(stack.suffixes)
        inside = (pairs.head >= start) & (pairs.head < end)
        head, image, query, target = (column[inside] for column in pairs)
        parts.append(Pairs(head - start, image, query, target))
        start = end
    return parts


def _for_every_head(pairs: Matched, heads: int) -> Matched:
    """Repeat the pairs for each of several heads."""
    head = torch.arange(heads, device=pairs.query.device)
    head = head.repeat_interleave(len(pairs.query))
    return Matched(
        head,
        pairs.image.repeat(heads),
        pairs.query.repeat(heads),
        pairs.target.repeat(heads),
    )


def _to_device(all_pairs: list[Pairs], device: torch.device) -> list[Matched]:
    """Move all pairs to the device in one copy, without a host-device synchronization."""
    blocks = [np.stack(pairs) for pairs in all_pairs]  # each [4, M]
    lengths = [len(pairs.query) for pairs in all_pairs]
    joined = torch.from_numpy(np.concatenate(blocks, axis=1))
    if device.type == "cuda":
        joined = joined.pin_memory()
    on_device = joined.to(device, non_blocking=True)
    return [Matched(*part) for part in on_device.split(lengths, dim=1)]


def _matched_queries(stack: HeadStack, pairs: Matched) -> Tensor:
    """Return True for each query that has a pair, `[B, Q]` bool."""
    boxes = stack.boxes
    matched = torch.zeros(
        boxes.shape[1:3], dtype=torch.bool, device=boxes.device
    )
    matched[pairs.image, pairs.query] = True
    return matched
