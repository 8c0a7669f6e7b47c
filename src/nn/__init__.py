"""Layers and backbones: images in, feature maps out; and what keeps a pretrained one from drifting."""

from . import backbone, gram_anchoring

__all__ = ["backbone", "gram_anchoring"]
