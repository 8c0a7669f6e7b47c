"""Backbones that map images to feature maps, LoRA, Gram anchoring, and distillation."""

from . import backbone, distillation, gram_anchoring

__all__ = ["backbone", "distillation", "gram_anchoring"]
