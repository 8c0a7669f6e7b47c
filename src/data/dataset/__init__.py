"""Data sets. Importing this package registers them."""

from ...core.contracts import Objects
from .coco_dataset import CocoDetection
from .detection_dataset import DetectionDataset
from .images import load_image

__all__ = ["CocoDetection", "DetectionDataset", "Objects", "load_image"]
