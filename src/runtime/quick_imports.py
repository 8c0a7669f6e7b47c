"""Importing timm without torch's compiler, which takes four times as long as timm itself.

torchvision and timm use two functions of `torch._dynamo` while they are imported: one is only called in a
compiled model, and one marks a method that the compiler must not follow. Stand-ins for these two load the
compiler when they are called. torch itself marks its functions for the device "meta" when they are called.
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_PACKAGE = "torch._dynamo"
_UTILS = "torch._dynamo.utils"

_one_at_a_time = threading.RLock()


def import_timm() -> None:
    """Import timm and torchvision, without torch's compiler if nothing has loaded it yet."""
    if "timm" in sys.modules:
        return
    with without_compiler(), collector_paused():
        import timm  # noqa: F401


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector during the body.

    Imports create hundreds of thousands of objects that stay. The collector would go through all of them
    several times, which takes a fifth of the time of the imports.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def without_compiler() -> Iterator[None]:
    """Replace `torch._dynamo` by stand-ins during the body, unless it is loaded.

    Any other name of it that the body uses loads the compiler.
    """
    with _one_at_a_time:
        if _PACKAGE in sys.modules:
            yield
            return
        package = _StandIn(_PACKAGE)
        package.disable = _disable
        utils = _StandIn(_UTILS)
        utils.is_compile_supported = _is_compile_supported
        package.utils = utils
        sys.modules[_PACKAGE] = package
        sys.modules[_UTILS] = utils
        try:
            yield
        finally:
            _remove_stand_ins()
            for function in _used_unmarked:
                vars(function).pop("__dynamo_disable", None)
            _used_unmarked.clear()


_used_unmarked: list[Any] = []
"""Functions of torch that were called without the mark; torch marks them when they are called again."""


class _StandIn(ModuleType):
    """A module in place of one of the compiler; it looks up all other names in the real module."""

    disable: Callable[..., Any]
    is_compile_supported: Callable[[str], bool]
    utils: ModuleType

    def __getattr__(self, name: str) -> Any:
        is_special = name.startswith("__") and name != "__path__"
        if is_special or (name == "__path__" and self.__name__ == _UTILS):
            raise AttributeError(
                f"module {self.__name__!r} has no attribute {name!r}"
            )
        _remove_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


def _remove_stand_ins() -> None:
    for name in (_PACKAGE, _UTILS):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


def _disable(
    function: Any, recursive: bool = True, *, wrapping: bool = True, **_: Any
) -> Any:
    """Mark a function that the compiler must not follow, as torch does it for its own optimizers.

    Without `wrapping`, torch is about to call a function that it has marked in this way. Nothing is compiled
    now, so the function itself is called.
    """
    if not wrapping:
        _used_unmarked.append(function)
        return function
    from torch._compile import _disable_dynamo

    return _disable_dynamo(function, recursive)


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)
