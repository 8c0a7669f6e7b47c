"""Convert every length in a configuration to an integer, using the type annotations of components.

The configuration itself keeps the lengths as written, so it can be used again with another number of epochs.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .durations import (
    LengthUnit,
    RunLength,
    StepsUnknownError,
    Unit,
    length_unit,
    read_duration,
)
from .errors import ConfigError
from .origins import KeyPath
from .registry import REQUIRED, Argument, Component, find
from .yaml_text import dotted


@dataclass(frozen=True)
class ResolvedLength:
    """A length in a configuration, as written and as an integer."""

    path: KeyPath
    """Path of the setting."""
    written: Any
    """The value in the configuration, or its default; None if a rule of the class provides the value."""
    value: Any
    """The integer; any replacement value if the class resolves the setting itself."""
    unit: Unit | None = None
    """Unit of the number; None if the value is not a single number."""
    unknown: str | None = None
    """Reason why there is no value yet (the number of steps is not known); `value` is then the default."""

    def __str__(self) -> str:
        written = "~" if self.written is None else self.written
        counted = str(self.value)
        if self.unit is not None:
            unit = self.unit.removesuffix("s") if self.value == 1 else self.unit
            counted += f" {unit}"
        return f"{dotted(self.path)}: {written} -> {counted}"


def resolve_lengths(
    values: Mapping[str, Any],
    run: RunLength,
    blocks: Iterable[str] = (),
) -> list[ResolvedLength]:
    """Return all lengths of a configuration that are not integers already.

    Args:
        values: the whole configuration, validated.
        run: length of the run. Without steps, lengths that need them are returned as `unknown`.
        blocks: top-level keys that hold `{type: Class, ...}`.

    Raises:
        ConfigError: if a value is not a length.
    """
    found = []
    for key, value in values.items():
        component = find(key)
        if key in blocks:
            found += _in_specification(value, values, run, (key,))
        elif component is not None and isinstance(value, Mapping):
            found += _in_settings(component, value, values, run, (key,))
    return found


def with_lengths(
    values: Mapping[str, Any], lengths: Iterable[ResolvedLength]
) -> dict[str, Any]:
    """Return a copy of a configuration in which the given lengths are replaced by their values."""
    resolved = copy.deepcopy(dict(values))
    for length in lengths:
        *parents, last = length.path
        container: Any = resolved
        for part in parents:
            if isinstance(container, dict) and container.get(part) is None:
                container[part] = {}
            container = container[part]
        container[last] = length.value
    return resolved


def with_whole_numbers(
    component: Component, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a component with integers for all lengths, none of which may depend on the run.

    Raises:
        ConfigError: if a value is not a length, or depends on the length of the run.
    """
    found = []
    for key, argument in component.arguments.items():
        if key not in settings or key in component.inject:
            continue
        lengths = lengths_of(settings[key], argument.annotation, (key,))
        for path, value, unit in lengths:
            number = _own_number(value, unit, component.name, path)
            found.append(ResolvedLength(path, value, number))
    return with_lengths(settings, found) if found else dict(settings)


def lengths_of(
    value: Any, annotation: Any, path: KeyPath = ()
) -> Iterator[tuple[KeyPath, Any, LengthUnit]]:
    """Yield the lengths in a value, found by its type annotation.

    Args:
        value: a value of a configuration.
        annotation: its type: a length, or a union, list, tuple or `TypedDict` that contains lengths.
        path: path of the value.

    Yields:
        Path, value and unit of each length. None is not a length.
    """
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        unit = length_unit(annotation)
        is_single = not isinstance(value, (list, tuple, Mapping))
        if unit is not None and value is not None and is_single:
            yield path, value, unit
    elif typing.is_typeddict(annotation):
        if isinstance(value, Mapping):
            hints = typing.get_type_hints(annotation, include_extras=True)
            for key, inner in hints.items():
                yield from lengths_of(value.get(key), inner, (*path, key))
    elif origin in _LISTS:
        if isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                inner = _type_of_item(origin, arguments, index)
                yield from lengths_of(item, inner, (*path, index))
    else:
        for alternative in arguments:
            yield from lengths_of(value, alternative, path)


_LISTS = (list, tuple, Sequence, Iterable)


def _type_of_item(origin: Any, arguments: tuple[Any, ...], index: int) -> Any:
    """Return the type of an item of a list or tuple."""
    if origin is tuple and Ellipsis not in arguments:
        return arguments[index] if index < len(arguments) else Any
    return arguments[0] if arguments else Any


def _in_specification(
    specification: Any,
    values: Mapping[str, Any],
    run: RunLength,
    path: KeyPath,
) -> list[ResolvedLength]:
    """Return the lengths of a component (its name, or a mapping with `type`) or of a list of components."""
    if isinstance(specification, list):
        found = []
        for index, part in enumerate(specification):
            found += _in_specification(part, values, run, (*path, index))
        return found
    settings: Mapping[str, Any] = {}
    component: Component | None = None
    if isinstance(specification, Mapping):
        component = find(specification.get("type", ""))
        settings = specification
    elif isinstance(specification, str) and specification not in values:
        # if the configuration has a section for it, its lengths are found there
        component = find(specification)
        path = (specification,)
    if component is None:
        return []
    return _in_settings(component, settings, values, run, path)


def _in_settings(
    component: Component,
    settings: Mapping[str, Any],
    values: Mapping[str, Any],
    run: RunLength,
    path: KeyPath,
) -> list[ResolvedLength]:
    """Return the lengths in the settings of a component and of the components injected into it."""
    found = []
    for key, argument in component.arguments.items():
        written = settings.get(key)
        if key in component.inject:
            found += _in_specification(written, values, run, (*path, key))
        else:
            found += _in_argument(component, key, argument, written, run, path)
    for key, value in _resolved_by_class(component, settings, run).items():
        here = (*path, key)
        found = [length for length in found if length.path[: len(here)] != here]
        length = length_unit(component.arguments[key].annotation)
        unit = None if length is None else length.unit
        found.append(ResolvedLength(here, settings.get(key), value, unit))
    return found


def _in_argument(
    component: Component,
    key: str,
    argument: Argument,
    value: Any,
    run: RunLength,
    path: KeyPath,
) -> list[ResolvedLength]:
    """Return the lengths in one argument, which is not an injected component."""
    unit = length_unit(argument.annotation)
    if value is None and unit is not None and unit.default is not None:
        value = unit.default
    found = []
    for inner, written, counted in lengths_of(
        value, argument.annotation, (key,)
    ):
        name = f"{component.name}.{dotted(_named(inner))}"
        try:
            number = run.resolve(written, counted.unit, name)
        except StepsUnknownError as error:
            default = (
                value if argument.default is REQUIRED else argument.default
            )
            return [
                ResolvedLength((*path, key), value, default, unknown=str(error))
            ]
        if type(written) is not int:
            found.append(
                ResolvedLength((*path, *inner), written, number, counted.unit)
            )
    return found


def _resolved_by_class(
    component: Component, settings: Mapping[str, Any], run: RunLength
) -> dict[str, Any]:
    """Return the result of a class's `__resolve_lengths__`; {} if it needs the unknown number of steps."""
    if component.resolve_lengths is None:
        return {}
    try:
        return component.resolve_lengths(settings, run)
    except StepsUnknownError:
        return {}


def _own_number(value: Any, unit: LengthUnit, owner: str, path: KeyPath) -> int:
    name = f"{owner}.{dotted(_named(path))}"
    number, given = read_duration(value, name, unit.unit)
    if number and given != unit.unit:
        raise ConfigError(
            f"{name} is {value!r}, which depends on the length of the run; expected an integer number of "
            f"{unit.unit}"
        )
    return max(int(number), int(number > 0))


def _named(path: KeyPath) -> KeyPath:
    """Return a path without list positions, for messages."""
    return tuple(part for part in path if isinstance(part, str))
