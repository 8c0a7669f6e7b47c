"""Backbones; importing this package registers them. A new one needs a file here and a line below."""

from .dinov3_backbone import DINOv3Backbone
from .hgnetv2 import HGNetv2

__all__ = ["DINOv3Backbone", "HGNetv2"]
