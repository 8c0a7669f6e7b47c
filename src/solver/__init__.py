"""Training and evaluation: the only place where the wings meet, through contracts."""

from .det_solver import DetSolver

__all__ = ["DetSolver"]
