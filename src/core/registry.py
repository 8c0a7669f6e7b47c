"""The table of everything a configuration can name: class name -> how to build it and what it accepts."""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .durations import RunLength, length_unit
from .errors import ConfigError

REQUIRED = inspect.Parameter.empty
"""Marks an argument without a default."""


@dataclass(frozen=True)
class Argument:
    """One constructor argument: its default (`REQUIRED` if none) and its type (`Any` if not annotated).

    The default of a length may be a fraction of the run, which its type names (`core.durations.LengthUnit`).
    """

    default: Any
    annotation: Any


@dataclass(frozen=True)
class Component:
    """A registered class or function."""

    name: str
    factory: Callable[..., Any]
    inject: tuple[str, ...]
    share: tuple[str, ...]
    load: str | None
    extra_arguments: Callable[[], dict[str, Argument]] | None = None
    resolve_lengths: Callable[[Mapping[str, Any], RunLength], dict[str, Any]] | None = None

    @property
    def arguments(self) -> dict[str, Argument]:
        """The arguments that YAML may set, with those that the class lists in `__extra_arguments__`."""
        return arguments_of(self.factory) | (self.extra_arguments() if self.extra_arguments else {})

    @property
    def accepts_anything(self) -> bool:
        """True for a constructor with `**kwargs` that does not list what it takes there."""
        kinds = [p.kind for p in inspect.signature(self.factory).parameters.values()]
        return inspect.Parameter.VAR_KEYWORD in kinds and self.extra_arguments is None


_COMPONENTS: dict[str, Component] = {}


def register(
    name: str | None = None,
    *,
    force: bool = False,
    extra_arguments: Callable[[], dict[str, Argument]] | None = None,
) -> Callable[[Callable], Callable]:
    """Make a class or function known to configurations, under its own name or `name`.

    The class may carry `__inject__` (arguments that are built from their own section), `__share__` (arguments
    that the top level of the configuration sets for all components), `__load__` (a method that `create` calls
    after construction, to read files), `__extra_arguments__` (a function that lists what `**kwargs` takes; a
    function names it in `extra_arguments`) and
    `__resolve_lengths__` (a function of the settings as written and a `RunLength`, which returns settings to
    use in their place: rules about lengths that need the length of the run).

    Raises:
        ConfigError: if the name is taken by another class, or a shared argument has no default.
    """

    def decorate(factory: Callable) -> Callable:
        key = name or factory.__name__
        known = _COMPONENTS.get(key)
        if known and not force and _origin(known.factory) != _origin(factory):
            raise ConfigError(
                f"'{key}' is registered by {_origin(known.factory)} already; rename {_origin(factory)}"
            )
        component = Component(
            key,
            factory,
            tuple(getattr(factory, "__inject__", ())),
            tuple(getattr(factory, "__share__", ())),
            getattr(factory, "__load__", None),
            extra_arguments or getattr(factory, "__extra_arguments__", None),
            getattr(factory, "__resolve_lengths__", None),
        )
        parameters = inspect.signature(factory).parameters
        for shared in component.share:
            if shared not in parameters or parameters[shared].default is REQUIRED:
                raise ConfigError(f"{key}.{shared} is in __share__, so it needs a default in the constructor")
        _COMPONENTS[key] = component
        return factory

    if callable(name):  # used as @register without parentheses
        factory, name = name, None
        return decorate(factory)
    return decorate


def arguments_of(factory: Callable, *, skip: str | None = None) -> dict[str, Argument]:
    """List the named arguments of a class or function, less the one that the program supplies."""
    types = _type_hints(factory)
    arguments = {}
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name == skip:
            continue
        annotation, default = types.get(parameter.name, Any), parameter.default
        length = length_unit(annotation)
        if default is REQUIRED and length is not None and length.default is not None:
            default = length.default
        arguments[parameter.name] = Argument(default, annotation)
    return arguments


def find(name: str) -> Component | None:
    """Return the component registered under `name`, or None."""
    return _COMPONENTS.get(name)


def components() -> list[Component]:
    """Return everything that is registered, sorted by name."""
    return [_COMPONENTS[name] for name in names()]


def names() -> list[str]:
    """Return all registered names, sorted."""
    return sorted(_COMPONENTS)


def shared_names() -> set[str]:
    """Return every argument name that some component shares at the top level."""
    return {name for component in _COMPONENTS.values() for name in component.share}


def _origin(factory: Callable) -> str:
    return f"{factory.__module__}.{factory.__qualname__}"


def _type_hints(factory: Callable) -> dict[str, Any]:
    """Return the annotations that can be resolved; those that cannot are left out."""
    target = factory.__init__ if inspect.isclass(factory) else factory
    scope = {**vars(typing), **vars(collections.abc), **getattr(inspect.unwrap(target), "__globals__", {})}
    hints = {}
    for name, annotation in getattr(target, "__annotations__", {}).items():
        try:
            hints[name] = typing.get_type_hints(_Annotated(name, annotation), scope, include_extras=True)[
                name
            ]
        except (NameError, TypeError, AttributeError, SyntaxError):
            continue
    return hints


class _Annotated:
    """Carries one annotation to `typing.get_type_hints`."""

    def __init__(self, name: str, annotation: Any) -> None:
        self.__annotations__ = {name: annotation}
