"""Evaluation; importing this package registers the evaluators."""

from .coco_evaluator import CocoEvaluator

__all__ = ["CocoEvaluator"]
