"""Training and evaluation: the package that combines model, data and optimizer through their contracts."""

from .det_solver import DetSolver

__all__ = ["DetSolver"]
