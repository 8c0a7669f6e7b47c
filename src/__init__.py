"""D-FINE with HGNetv2 and DINOv3 backbones.

Importing this package registers every class that a configuration can name.
"""

from . import data, nn, optim, zoo

__all__ = ["data", "nn", "optim", "zoo"]
