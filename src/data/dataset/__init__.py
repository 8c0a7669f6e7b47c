"""Data sets; importing this package registers them."""

from ...core.ground_truth import Objects
from .coco_dataset import CocoDetection
from .decoding import load_image
from .detection_dataset import DetectionDataset

__all__ = ["CocoDetection", "DetectionDataset", "Objects", "load_image"]
