"""D-FINE's training loss: which heads enter which term, over which pairs, divided by what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, NumericsError
from ...core.registry import register
from ...ops.boxes import cxcywh_to_xyxy, iou_and_giou
from ...runtime.distributed import sum_over_ranks, world_size
from .distribution import box_to_bins, weighting_sequence
from .losses import (
    Balance,
    Matched,
    box_losses,
    decoupled_distillation_loss,
    distillation_balance,
    fine_grained_localization_loss,
    focal_loss,
    matchability_aware_loss,
    varifocal_loss,
)
from .matcher import HungarianMatcher
from .matching import Pairs, unite
from .prediction_heads import HeadStack, denoising_heads, matching_heads

CLASS_LOSSES = {"loss_vfl": varifocal_loss, "loss_mal": matchability_aware_loss, "loss_focal": focal_loss}

TERMS = {
    "vfl": ("loss_vfl",),
    "mal": ("loss_mal",),
    "focal": ("loss_focal",),
    "boxes": ("loss_bbox", "loss_giou"),
    "local": ("loss_fgl", "loss_ddf"),
}
"""What each entry of `losses` emits."""


class Normalizers(NamedTuple):
    """What sums are divided by: counts over all ranks, and over all micro-batches of an accumulation window, per rank."""

    targets: Tensor | float
    """Number of objects; divides class terms, and with the number of groups all denoising terms."""
    union: Tensor | float
    """Number of pairs in the union of all matchings; divides box and localization terms."""
    share: float = 1.0
    """Part of the window that this micro-batch is; multiplies the distillation terms, which are means."""


class _Batch(NamedTuple):
    """Targets of all images end to end."""

    labels: Tensor
    """`[T]`."""
    boxes: Tensor
    """`[T, 4]` cxcywh."""
    counts: list[int]


@register()
class DFINECriterion(nn.Module):
    """Class, box, fine-grained localization and self-distillation losses over all heads of the decoder."""

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
    ) -> None:
        """Store the settings.

        Args:
            matcher: assigns queries to targets.
            weight_dict: weight of each term, `loss_vfl`, `loss_mal`, `loss_focal`, `loss_bbox`, `loss_giou`, `loss_fgl`, `loss_ddf`;
                a term without one, or with null, is left out.
            losses: "vfl", "mal" or "focal" for classes, "boxes", "local" (fine-grained localization and distillation).
            alpha: weight of negatives in the class loss.
            gamma: focal exponent.
            num_classes: C.
            reg_max: bins of an edge less one.
            boxes_weight_format: multiply the GIoU term by the pair's IoU or GIoU, and use that as class target.
            mal_alpha: weight of negatives in the matchability-aware loss; None for 1.
        """
        super().__init__()
        emitted = {name for loss in losses for name in TERMS[loss]}
        self.weights = {name: float(weight) for name, weight in weight_dict.items() if weight is not None}
        if idle := set(self.weights) - emitted:
            raise ConfigError(
                f"DFINECriterion.weight_dict weighs {', '.join(sorted(idle))}, which none of losses {list(losses)} computes"
            )
        self.matcher = matcher
        self.losses = list(losses)
        self.gamma, self.num_classes, self.reg_max = gamma, num_classes, reg_max
        self.alphas = {
            "loss_vfl": alpha,
            "loss_focal": alpha,
            "loss_mal": 1.0 if mal_alpha is None else mal_alpha,
        }
        self.boxes_weight_format = boxes_weight_format

    def set_epoch(self, epoch: int) -> None:
        """Tell the matcher which epoch it is; its cost may change."""
        self.matcher.set_epoch(epoch)

    def forward(
        self,
        outputs: dict[str, Any],
        targets: list[dict[str, Tensor]],
        normalizers: Normalizers | None = None,
    ) -> dict[str, Tensor]:
        """Compute all terms in float32.

        Args:
            outputs: from `DFINETransformer` in training mode.
            targets: for each image `labels [T]` int64 and `boxes [T, 4]` (cxcywh, 0..1).
            normalizers: for gradient accumulation, those of the whole window; otherwise those of this batch over all ranks.

        Returns:
            Weighted scalars by name; their sum is the loss.

        Raises:
            NumericsError: if a matching cost is not finite.
        """
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            return dict(self._terms(outputs, _join(targets), normalizers))

    @torch.no_grad()
    def count(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> tuple[int, int]:
        """Return this batch's numbers of objects and of pairs in the union of matchings, for `window_normalizers`."""
        batch = _join(targets)
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            pairs = self._match(matching_heads(outputs, self.reg_max + 1), batch)
        return len(batch.labels), len(unite(pairs).query)

    def window_normalizers(
        self, counts: Sequence[tuple[int, int]], images: Sequence[int], device: torch.device
    ) -> list[Normalizers]:
        """Return what each batch of an accumulation window is normalised by, so that the losses of all add up to those of one batch.

        Args:
            counts: from `count`, for each batch.
            images: in each batch; the distillation terms, which are means, count by it.
            device: where the losses are.
        """
        whole = all_rank_normalizers(*(sum(column) for column in zip(*counts)), device)
        return [whole._replace(share=number / sum(images)) for number in images]

    def _terms(
        self, outputs: dict[str, Any], batch: _Batch, normalizers: Normalizers | None
    ) -> Iterator[tuple[str, Tensor]]:
        stacks = matching_heads(outputs, self.reg_max + 1)
        try:
            pairs = self._match(stacks, batch)
        except NumericsError:
            all_rank_normalizers(len(batch.labels), 0, batch.labels.device)  # the other ranks wait for this
            raise
        union = unite(pairs)
        meta = outputs.get("dn_meta")
        dn_pairs = (
            _denoising_pairs(batch.counts, meta["dn_num_group"], meta.get("dn_chosen"))
            if meta
            else _no_pairs()
        )
        ends = np.cumsum([len(stack.suffixes) for stack in stacks])
        own = [_heads_between(pairs, end - len(stack.suffixes), end) for stack, end in zip(stacks, ends)]
        *own, union, dn_pairs = _to_device([*own, union, dn_pairs], batch.labels.device)
        normalizers = normalizers or all_rank_normalizers(
            len(batch.labels), len(union.query), batch.labels.device
        )

        balance = None
        for stack, pairs_of_stack in zip(stacks, own):
            if stack.teacher_corners is not None:
                balance = distillation_balance(_matched_queries(stack, union))
            yield from self._class_terms(stack, pairs_of_stack, batch, normalizers.targets)
            yield from self._box_terms(
                stack, union, batch, outputs, normalizers.union, balance, normalizers.share
            )
        if meta:
            stack = denoising_heads(outputs, self.reg_max + 1)
            dn_pairs = dn_pairs._replace(query=torch.cat(meta["dn_positive_idx"]))
            normalizer = normalizers.targets * max(meta["dn_num_group"], 1)
            yield from self._class_terms(
                stack, _for_every_head(dn_pairs, len(stack.suffixes)), batch, normalizer
            )
            yield from self._box_terms(
                stack, dn_pairs, batch, outputs, normalizer, balance, normalizers.share
            )
            if "loss_ddf" in self.weights:
                yield (
                    f"loss_ddf_dn_{len(stack.corners) - 1}",
                    stack.corners.new_zeros(()),
                )  # the teacher itself

    def _match(self, stacks: list[HeadStack], batch: _Batch) -> Pairs:
        return self.matcher.match([(stack.logits.detach(), stack.boxes.detach()) for stack in stacks], *batch)

    def _class_terms(
        self, stack: HeadStack, pairs: Matched, batch: _Batch, normalizer: Tensor | float
    ) -> Iterator[tuple[str, Tensor]]:
        predicted = stack.boxes.detach()[pairs.head, pairs.image, pairs.query]
        iou, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(batch.boxes[pairs.target]))
        quality = giou if self.boxes_weight_format == "giou" else iou
        labels = batch.labels[pairs.target] if stack.logits.shape[-1] > 1 else torch.zeros_like(pairs.target)
        for term, loss in CLASS_LOSSES.items():
            if term in self.weights:
                sums = loss(stack.logits, pairs, labels, quality, self.alphas[term], self.gamma)
                yield from self._emit(term, stack.suffixes, sums / normalizer)

    def _box_terms(
        self,
        stack: HeadStack,
        pairs: Matched,
        batch: _Batch,
        outputs: dict[str, Any],
        normalizer: Tensor | float,
        balance: Balance | None,
        share: float,
    ) -> Iterator[tuple[str, Tensor]]:
        """All terms about where objects are, over pairs that the heads of a stack share."""
        targets = batch.boxes[pairs.target]
        losses = box_losses(stack.boxes[:, pairs.image, pairs.query], targets, self.boxes_weight_format)
        for term, sums in (("loss_bbox", losses.l1), ("loss_giou", losses.giou)):
            if term in self.weights:
                yield from self._emit(term, stack.suffixes, sums / normalizer)
        if stack.corners is None:
            return
        if "loss_fgl" in self.weights:
            reg_scale = outputs["reg_scale"].detach()
            bins = box_to_bins(
                stack.reference[pairs.image, pairs.query],
                cxcywh_to_xyxy(targets),
                weighting_sequence(self.reg_max, outputs["up"].detach(), reg_scale),
                reg_scale,
            )
            sums = fine_grained_localization_loss(
                stack.corners[:, pairs.image, pairs.query], bins, losses.iou[: len(stack.corners)]
            )
            yield from self._emit("loss_fgl", stack.suffixes, sums / normalizer)
        if "loss_ddf" in self.weights and stack.teacher_corners is not None:
            students = len(stack.corners) - 1
            trust = stack.teacher_logits.sigmoid().amax(-1).repeat(students, 1, 1)  # [L - 1, B, Q]
            trust[:, pairs.image, pairs.query] = losses.iou[:students]
            positive = _matched_queries(stack, pairs)
            sums = decoupled_distillation_loss(
                stack.corners[:students],
                stack.teacher_corners,
                trust,
                positive,
                balance or distillation_balance(positive),
            )
            yield from self._emit("loss_ddf", stack.suffixes, sums * share)

    def _emit(self, term: str, suffixes: list[str], values: Tensor) -> Iterator[tuple[str, Tensor]]:
        for suffix, value in zip(suffixes, (values * self.weights[term]).unbind()):
            yield term + suffix, value


def all_rank_normalizers(num_targets: int, num_union: int, device: torch.device) -> Normalizers:
    """Return the mean counts over ranks, at least 1, without a transfer to the host."""
    if world_size() == 1:
        return Normalizers(max(float(num_targets), 1.0), max(float(num_union), 1.0))
    counts = (
        sum_over_ranks(
            torch.tensor([num_targets, num_union], dtype=torch.float32).to(device, non_blocking=True)
        )
        / world_size()
    )
    return Normalizers(*counts.clamp(min=1).unbind())


def _join(targets: list[dict[str, Tensor]]) -> _Batch:
    return _Batch(
        torch.cat([t["labels"] for t in targets]),
        torch.cat([t["boxes"] for t in targets]).float(),
        [len(t["labels"]) for t in targets],
    )


def _denoising_pairs(counts: list[int], num_groups: int, chosen: list[Tensor | None] | None) -> Pairs:
    """Each positive denoising query with the object that it was made from; the queries are filled in on the device."""
    if not num_groups:
        return _no_pairs()
    starts = np.cumsum(counts) - counts
    objects = [
        start + (np.arange(n) if few is None else few.numpy())
        for start, n, few in zip(starts, counts, chosen or [None] * len(counts))
    ]
    image = np.repeat(np.arange(len(counts)), [num_groups * len(own) for own in objects])
    target = np.concatenate([np.tile(own, num_groups) for own in objects])
    return Pairs(np.zeros_like(image), image, np.zeros_like(image), target)


def _no_pairs() -> Pairs:
    return Pairs(*[np.zeros(0, np.int64)] * 4)


def _heads_between(pairs: Pairs, start: int, end: int) -> Pairs:
    mine = (pairs.head >= start) & (pairs.head < end)
    return Pairs(pairs.head[mine] - start, *(column[mine] for column in pairs[1:]))


def _for_every_head(pairs: Matched, heads: int) -> Matched:
    head = torch.arange(heads, device=pairs.query.device).repeat_interleave(len(pairs.query))
    return Matched(head, *(column.repeat(heads) for column in pairs[1:]))


def _to_device(all_pairs: list[Pairs], device: torch.device) -> list[Matched]:
    """Move all pairs in one copy."""
    joined = torch.from_numpy(np.concatenate([np.stack(pairs) for pairs in all_pairs], axis=1))
    if device.type == "cuda":
        joined = joined.pin_memory()
    parts = joined.to(device, non_blocking=True).split([len(pairs.query) for pairs in all_pairs], dim=1)
    return [Matched(*part) for part in parts]


def _matched_queries(stack: HeadStack, pairs: Matched) -> Tensor:
    """Return which queries have a pair, `[B, Q]` bool."""
    matched = torch.zeros(stack.boxes.shape[1:3], dtype=torch.bool, device=stack.boxes.device)
    matched[pairs.image, pairs.query] = True
    return matched
