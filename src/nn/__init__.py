"""Layers and backbones: images in, feature maps out."""

from . import backbone

__all__ = ["backbone"]
