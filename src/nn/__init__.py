"""Backbones that map images to feature maps, LoRA, Gram anchoring, and distillation."""

from . import backbone, detector_distillation, distillation, gram_anchoring

__all__ = [
    "backbone",
    "detector_distillation",
    "distillation",
    "gram_anchoring",
]
