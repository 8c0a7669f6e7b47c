"""Building a model whose weights are loaded afterwards, without drawing random numbers for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode


class ZeroStart(TorchFunctionMode):
    """Within this context, tensors that would be filled with random numbers are filled with zeros.

    Drawing the numbers takes most of the time in which a model is built. Zeros are used instead of memory as
    it is, so that a weight that a file lacks has the same value each time.

    Example:
        >>> with ZeroStart():
        ...     layer = torch.nn.Linear(2, 1)
        >>> layer.weight.tolist()
        [[0.0, 0.0]]
    """

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or set its tensor to zero if the function would fill it randomly."""
        arguments = dict(kwargs or {})
        if func in _RANDOM:
            tensor = args[0] if args else arguments["tensor"]
            with torch.no_grad():
                return tensor.zero_()
        return func(*args, **arguments)


_RANDOM = (
    Tensor.uniform_,
    Tensor.normal_,
    Tensor.erfinv_,  # how timm makes normal numbers of uniform ones
    init.uniform_,
    init.normal_,
    init.trunc_normal_,
    init.kaiming_uniform_,
    init.kaiming_normal_,
    init.xavier_uniform_,
    init.xavier_normal_,
)
"""Functions whose first argument is a tensor that they fill with random numbers."""
