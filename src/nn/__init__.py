"""Backbones that map images to feature maps, LoRA, and Gram anchoring."""

from . import backbone, gram_anchoring

__all__ = ["backbone", "gram_anchoring"]
