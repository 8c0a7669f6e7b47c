"""Conversion of model outputs to detections in pixels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...core.coco_categories import COCO_CATEGORY_IDS
from ...core.contracts import Detections, Predictions
from ...core.errors import ConfigError
from ...core.registry import register
from ...ops.boxes import cxcywh_to_xyxy


@register()
class DFINEPostProcessor(nn.Module):
    """Select the best (query, class) pairs of each image, without non-maximum suppression or threshold."""

    __role__ = "postprocessor"
    __share__ = [
        "num_classes",
        "use_focal_loss",
        "num_top_queries",
        "remap_mscoco_category",
    ]

    def __init__(
        self,
        num_classes: int = 80,
        use_focal_loss: bool = True,
        num_top_queries: int = 300,
        remap_mscoco_category: bool = False,
    ) -> None:
        """Store the settings.

        Args:
            num_classes: number of classes, C.
            use_focal_loss: classes have independent scores (sigmoid). Otherwise scores are a softmax over
                C + 1 classes, the last of which is background.
            num_top_queries: maximum number of detections per image.
            remap_mscoco_category: return COCO category ids instead of labels 0..79.

        Raises:
            ConfigError: if `remap_mscoco_category` is set but `num_classes` is not 80, or if
                `num_top_queries` is less than 1.
        """
        super().__init__()
        if num_top_queries < 1:
            raise ConfigError(
                f"num_top_queries is {num_top_queries}, expected at least 1"
            )
        if remap_mscoco_category and num_classes != len(COCO_CATEGORY_IDS):
            raise ConfigError(
                f"remap_mscoco_category is for COCO's 80 classes, but num_classes is {num_classes}; set it "
                f"to False"
            )
        self.num_classes = num_classes
        self.use_focal_loss = use_focal_loss
        self.num_top_queries = num_top_queries
        self.remap_mscoco_category = remap_mscoco_category
        self.deploy_mode = False

    def forward(
        self,
        outputs: Predictions,
        orig_target_sizes: Tensor,
    ) -> list[Detections] | tuple[Tensor, Tensor, Tensor]:
        """Select detections and scale their boxes to pixels.

        Args:
            outputs: `pred_logits [B, Q, C]`, `pred_boxes [B, Q, 4]` cxcywh in 0..1.
            orig_target_sizes: `[B, 2]`, (width, height) of each original image in pixels.

        Returns:
            Labels, boxes (xyxy, pixels) and scores of each image, best first. After `deploy()` the same as a
            tuple of batched tensors: labels `[B, R]`, boxes `[B, R, 4]`, scores `[B, R]`. Labels are then
            always 0..C-1.
        """
        logits = outputs["pred_logits"].float()
        boxes = outputs["pred_boxes"].float()
        sizes = orig_target_sizes.repeat(1, 2)[:, None].to(boxes)  # [B, 1, 4]
        boxes = cxcywh_to_xyxy(boxes) * sizes
        if self.use_focal_loss:
            classes = logits.shape[-1]
            count = min(self.num_top_queries, logits[0].numel())
            scores, index = logits.sigmoid().flatten(1).topk(count, dim=-1)
            labels = index % classes
            query = index // classes
        else:
            best, best_labels = logits.softmax(-1)[..., :-1].max(-1)
            count = min(self.num_top_queries, best.shape[1])
            scores, query = best.topk(count, dim=-1)
            labels = best_labels.gather(1, query)
        boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4))
        if self.deploy_mode:
            return labels, boxes, scores
        if self.remap_mscoco_category:
            labels = torch.tensor(COCO_CATEGORY_IDS, device=labels.device)[
                labels
            ]
        detections: list[Detections] = []
        for label, box, score in zip(labels, boxes, scores):
            detections.append({"labels": label, "boxes": box, "scores": score})
        return detections

    def deploy(self) -> DFINEPostProcessor:
        """Return a copy whose `forward` returns batched tensors, as exported models must."""
        processor = copy.deepcopy(self).eval()
        processor.deploy_mode = True
        return processor
