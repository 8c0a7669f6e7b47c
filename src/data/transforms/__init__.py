"""Augmentation. Importing this package registers the transforms."""

from .compose import (
    Compose,
    ConvertBoxes,
    ConvertPILImage,
    EmptyTransform,
    Normalize,
    Transform,
)
from .geometric import (
    PadToSize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomIoUCrop,
    RandomZoomOut,
    Resize,
    SanitizeBoundingBoxes,
)
from .mosaic import Mosaic
from .photometric import RandomPhotometricDistort
from .sample import Sample

__all__ = [
    "Compose",
    "ConvertBoxes",
    "ConvertPILImage",
    "EmptyTransform",
    "Mosaic",
    "Normalize",
    "PadToSize",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomIoUCrop",
    "RandomPhotometricDistort",
    "RandomZoomOut",
    "Resize",
    "Sample",
    "SanitizeBoundingBoxes",
    "Transform",
]
