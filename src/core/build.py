"""Build objects from registered names and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .detection_data import refuse_incomplete_class
from .errors import ConfigError, RunError
from .lengths import with_whole_numbers
from .registry import Component, find, names
from .validate import did_you_mean

_CONSTRUCTION_ERRORS = (
    TypeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
)
"""Errors of constructors that refuse a value; torch's classes raise the last two."""


def create(
    spec: str | Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    *,
    load_files: bool = True,
    **runtime: Any,
) -> Any:
    """Build a registered component and all the components injected into it.

    Lengths must not depend on the length of the run; `core.lengths` converts those to integers first.

    Args:
        spec: a registered name, whose settings are in `config` under that name, or a mapping with `type`.
        config: the whole resolved configuration; needed for injected names and shared values.
        load_files: call the methods that read files (`__load__`), such as pretrained weights.
        runtime: arguments that only the program knows (a model, an optimizer); they override settings.

    Raises:
        ConfigError: if a name is not registered, a length depends on the run, or the constructor refuses a
            value.
    """
    config = config or {}
    name, settings = _name_and_settings(spec, config)
    component = find(name)
    if component is None:
        raise ConfigError(
            f"'{name}' is not registered{did_you_mean(name, names())}"
        )
    refuse_incomplete_class(component.factory)
    arguments = {
        **with_whole_numbers(component, settings),
        **_shared(component, settings, config),
        **runtime,
    }
    for key in component.inject:
        if key in arguments:
            arguments[key] = _inject(arguments[key], config, load_files)
    try:
        built = component.factory(**arguments)
    except RunError:
        raise
    except _CONSTRUCTION_ERRORS as error:
        # a system limit, which `runtime.process.explain` reports
        if "shared memory" in str(error):
            raise
        raise ConfigError(f"{name} cannot be built: {error}") from error
    if component.load and load_files:
        getattr(built, component.load)()
    return built


def _name_and_settings(
    spec: str | Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, dict(config.get(spec) or {})
    if "type" not in spec:
        raise ConfigError(f"{dict(spec)!r} has no 'type' that names a class")
    return spec["type"], {
        key: value for key, value in spec.items() if key != "type"
    }


def _shared(
    component: Component, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values that the top level sets for all components; a component must not contradict them."""
    shared = {key: config[key] for key in component.share if key in config}
    for key, value in shared.items():
        if key in settings and settings[key] != value:
            raise ConfigError(
                f"{component.name}.{key} is {settings[key]!r} but the top level says {key}: {value!r}; keep "
                "one of them"
            )
    return shared


def _inject(value: Any, config: Mapping[str, Any], load_files: bool) -> Any:
    if isinstance(value, (str, Mapping)):
        return create(value, config, load_files=load_files)
    if isinstance(value, list):
        return [_inject(item, config, load_files) for item in value]
    return value


def refuse_other_roles(
    role: str, spec: Any, config: Mapping[str, Any], place: str
) -> None:
    """Check that a specification and all components injected into it are parts of a model of their roles.

    Args:
        role: role of the specification; an injected argument has its name as role.
        spec: as in `create`.
        config: the whole configuration.
        place: source of the configuration, for messages.

    Raises:
        ConfigError: with the first name that has another role.
    """
    name, settings = _name_and_settings(spec, config)
    component = find(name)
    if component is None:
        raise ConfigError(
            f"{place} names '{name}' as {role}, which is not registered{did_you_mean(name, names())}; "
            "if it is a class of your own, give its configuration file with -c"
        )
    if not component.can_be(role):
        found = "is not a part of a model"
        if component.role is not None:
            found = f"has the role {component.role}"
        raise ConfigError(
            f"{place} names '{name}' as {role}, but {name} {found}; it was not built"
        )
    for key in component.inject:
        parts = settings.get(key)
        for part in parts if isinstance(parts, list) else [parts]:
            if part is not None:
                refuse_other_roles(key, part, config, f"{place}: {name}")
