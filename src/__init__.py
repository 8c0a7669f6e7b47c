"""D-FINE with HGNetv2 and DINOv3 backbones. Importing it registers every class that a configuration can name."""

from . import nn, zoo

__all__ = ["nn", "zoo"]
