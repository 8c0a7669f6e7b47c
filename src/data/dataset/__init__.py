"""Data sets. Importing this package registers them."""

from .coco_dataset import CocoDetection

__all__ = ["CocoDetection"]
