"""Activation functions by name, and the inverse of the sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
}


def build_activation(name: str | None) -> nn.Module:
    """Return a new activation module; `None` gives the identity.

    Raises:
        ValueError: if the name is not known.

    Example:
        >>> build_activation("silu")
        SiLU()
    """
    if name is None:
        return nn.Identity()
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"activation '{name}' is not known; known are {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]()


def overwrite_input(activation: nn.Module) -> None:
    """Let an activation write its output over its input, if it can, which must be used nowhere else.

    Example:
        >>> activation = build_activation("silu")
        >>> overwrite_input(activation)
        >>> activation
        SiLU(inplace=True)
    """
    if isinstance(activation, (nn.ReLU, nn.SiLU, nn.LeakyReLU)):
        activation.inplace = True


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Return ln(x / (1 - x)) with x clipped to 0..1 and both terms kept at or above `eps`.

    Example:
        >>> inverse_sigmoid(torch.tensor([0.5, 0.75]))
        tensor([0.0000, 1.0986])
    """
    x = x.clamp(0.0, 1.0)
    odds = x.clamp(min=eps) / (1 - x).clamp(min=eps)
    return torch.log(odds)
