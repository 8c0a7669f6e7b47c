"""Detectors."""

from . import dfine

__all__ = ["dfine"]
