"""The registry of classes and functions that a configuration can name, with their arguments."""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .durations import RunLength, length_unit
from .errors import ConfigError

REQUIRED = inspect.Parameter.empty
"""Default of an argument without a default value."""


@dataclass(frozen=True)
class Argument:
    """One constructor argument: its default (or `REQUIRED`) and its type (`Any` if not annotated).

    The default of a length may be a fraction of the run, given by its type (`core.durations.LengthUnit`).
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
    resolve_lengths: (
        Callable[[Mapping[str, Any], RunLength], dict[str, Any]] | None
    ) = None
    role: str | None = None
    """Such as "backbone"; None for a class that does not declare one (`__role__`)."""

    def can_be(self, role: str) -> bool:
        """Return whether this is a part of a model for a role.

        A class of a user, which may declare no role, can have any if it is a torch module.
        """
        if self.role is not None:
            return self.role == role
        return inspect.isclass(self.factory) and issubclass(
            self.factory, nn.Module
        )

    @property
    def arguments(self) -> dict[str, Argument]:
        """The arguments that YAML may set, including those listed in `__extra_arguments__`."""
        extra = self.extra_arguments() if self.extra_arguments else {}
        return arguments_of(self.factory) | extra

    @property
    def accepts_anything(self) -> bool:
        """True if the constructor has `**kwargs` without a list of its arguments."""
        parameters = inspect.signature(self.factory).parameters.values()
        kinds = [parameter.kind for parameter in parameters]
        return (
            inspect.Parameter.VAR_KEYWORD in kinds
            and self.extra_arguments is None
        )


_COMPONENTS: dict[str, Component] = {}

_ROOT = __name__.partition(".")[0]
"""Name of the whole package: `src`, or `dfine_dinov3` if it is installed."""

_OWN_PACKAGES = ("data", "nn", "optim", "zoo")
"""Packages of this project that register classes when they are imported."""

_own_are_registered = False


def register_own_classes() -> None:
    """Import the packages of this project that register classes; repeated calls have no effect.

    This happens at the first look-up, and before the first class of a user registers itself. Importing the
    package alone is therefore cheap.

    Example:
        >>> register_own_classes()
        >>> find("Resize").role is None
        True
    """
    global _own_are_registered
    if _own_are_registered:
        return
    _own_are_registered = True
    try:
        for package in _OWN_PACKAGES:
            importlib.import_module(f"{_ROOT}.{package}")
    except BaseException:
        _own_are_registered = False
        raise


def register(
    name: str | None = None,
    *,
    force: bool = False,
    extra_arguments: Callable[[], dict[str, Argument]] | None = None,
) -> Callable[[Callable], Callable]:
    """Register a class or function for use in configurations, under its own name or `name`.

    A class may define these attributes:

    - `__inject__`: arguments that are built from their own section.
    - `__share__`: arguments that the top level of the configuration sets for all components.
    - `__role__`: its role in a model, such as backbone, encoder or decoder. The configuration inside a
      checkpoint can name it only in this role.
    - `__load__`: name of a method that reads files; `create` calls it after construction.
    - `__extra_arguments__`: a function that lists the arguments in `**kwargs`. For a registered function, use
      `extra_arguments`.
    - `__resolve_lengths__`: a function of the settings as written and a `RunLength`. It returns settings that
      replace them, for rules about lengths that depend on the length of the run.

    Raises:
        ConfigError: if another class has this name, or a shared argument has no default.

    Example:
        >>> @register("ExampleHead")
        ... class Head:
        ...     def __init__(self, width: int, depth: int = 2):
        ...         self.width = width
        >>> find("ExampleHead").arguments["depth"]
        Argument(default=2, annotation=<class 'int'>)
    """

    def decorate(factory: Callable) -> Callable:
        key = name or factory.__name__
        if factory.__module__.partition(".")[0] != _ROOT:
            register_own_classes()
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
            getattr(factory, "__role__", None),
        )
        parameters = inspect.signature(factory).parameters
        for shared in component.share:
            if (
                shared not in parameters
                or parameters[shared].default is REQUIRED
            ):
                raise ConfigError(
                    f"{key}.{shared} is in __share__, so it needs a default in the constructor"
                )
        _COMPONENTS[key] = component
        return factory

    if callable(name):  # used as @register without parentheses
        factory = name
        name = None
        return decorate(factory)
    return decorate


def arguments_of(
    factory: Callable, *, skip: str | None = None
) -> dict[str, Argument]:
    """Return the named arguments of a class or function, except `skip`.

    Example:
        >>> def resize(image, size: int = 640): ...
        >>> arguments_of(resize, skip="image")
        {'size': Argument(default=640, annotation=<class 'int'>)}
    """
    types = _type_hints(factory)
    arguments = {}
    for parameter in inspect.signature(factory).parameters.values():
        is_variadic = parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if is_variadic or parameter.name == skip:
            continue
        annotation = types.get(parameter.name, Any)
        default = parameter.default
        length = length_unit(annotation)
        if (
            default is REQUIRED
            and length is not None
            and length.default is not None
        ):
            default = length.default
        arguments[parameter.name] = Argument(default, annotation)
    return arguments


def find(name: str) -> Component | None:
    """Return the component registered under `name`, or None.

    Example:
        >>> find("NotRegistered") is None
        True
    """
    register_own_classes()
    return _COMPONENTS.get(name)


def components() -> list[Component]:
    """Return all registered components, sorted by name.

    Example:
        >>> [component.name for component in components()] == names()
        True
    """
    return [_COMPONENTS[name] for name in names()]


def names() -> list[str]:
    """Return all registered names, sorted.

    Example:
        >>> "Resize" in names()
        True
    """
    register_own_classes()
    return sorted(_COMPONENTS)


def shared_names() -> set[str]:
    """Return the names of all arguments that components share at the top level.

    Example:
        >>> "num_classes" in shared_names()
        True
    """
    register_own_classes()
    shared: set[str] = set()
    for component in _COMPONENTS.values():
        shared.update(component.share)
    return shared


def _origin(factory: Callable) -> str:
    return f"{factory.__module__}.{factory.__qualname__}"


def _type_hints(factory: Callable) -> dict[str, Any]:
    """Return the annotations that can be resolved and leave out the others."""
    target = factory.__init__ if inspect.isclass(factory) else factory
    scope = {
        **vars(typing),
        **vars(collections.abc),
        **getattr(inspect.unwrap(target), "__globals__", {}),
    }
    hints = {}
    for name, annotation in getattr(target, "__annotations__", {}).items():
        try:
            resolved = typing.get_type_hints(
                _Annotated(name, annotation), scope, include_extras=True
            )
        except (NameError, TypeError, AttributeError, SyntaxError):
            continue
        hints[name] = resolved[name]
    return hints


class _Annotated:
    """An object with one annotation, for `typing.get_type_hints`."""

    def __init__(self, name: str, annotation: Any) -> None:
        self.__annotations__ = {name: annotation}
