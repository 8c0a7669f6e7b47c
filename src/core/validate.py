"""Validate a configuration against the signatures of the registered classes, before anything is built."""

from __future__ import annotations

import difflib
import itertools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .config_file import ConfigTree, first_non_finite
from .counts import counted
from .durations import Duration, length_unit, read_duration
from .errors import ConfigError
from .fault_lists import listed
from .lengths import lengths_of
from .origins import KeyPath
from .registry import (
    REQUIRED,
    Argument,
    Component,
    components,
    find,
    names,
    shared_names,
)
from .yaml_text import dotted

MAX_FAULTS = 100
"""Maximum number of faults in a message."""


def validate(
    tree: ConfigTree,
    top_level: dict[str, Argument],
    blocks: dict[str, tuple[str, ...]],
) -> None:
    """Check every key, type and reference of `tree`.

    Args:
        tree: the merged configuration.
        top_level: settings of the run itself, with type and default.
        blocks: top-level entries that hold `{type: Class, ...}`, with the arguments supplied at run time.

    Raises:
        ConfigError: one error that lists all faults, each with its file and line.
    """
    found = _top_level_faults(tree, top_level, blocks)
    faults = list(itertools.islice(found, MAX_FAULTS))
    if len(faults) == MAX_FAULTS:
        faults.append("and possibly more")
    path = first_non_finite(tree.values)
    if path:
        faults.append(
            f"{dotted(path)} is not a finite number ({tree.origin(path)})"
        )
    if faults:
        number = (
            "a fault" if len(faults) == 1 else counted(len(faults), "fault")
        )
        raise ConfigError(
            f"the configuration has {number}: {listed(faults, '; ', shown=len(faults))}"
        )


_NOT_IN_STEPS = (
    "but the data are built before the number of steps is known; give it in epochs or as a fraction of the "
    "run"
)

_OF_YOUR_OWN = (
    "; a class of your own needs @register() and its file under __import__"
)

_LISTS = (list, tuple, set, Sequence, Iterable)
_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    dict: "a mapping",
    Mapping: "a mapping",
    type(None): "null",
}


def type_name(annotation: Any) -> str:
    """Describe an annotation for a user: `int | None` gives "an integer or null"."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return (
            "a length" if length_unit(annotation) else type_name(arguments[0])
        )
    if origin in (typing.Union, types.UnionType):
        # types that YAML cannot express, such as tensors, are left out
        known = (*_WORDS, *_LISTS)
        writable = [a for a in arguments if typing.get_origin(a) or a in known]
        alternatives = [type_name(a) for a in writable or arguments]
        return " or ".join(dict.fromkeys(alternatives))
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    base = dict if typing.is_typeddict(annotation) else origin or annotation
    if base in _LISTS:
        inner = [type_name(a) for a in arguments if a is not Ellipsis]
        if base is tuple and len(inner) == 2 and inner[0] != inner[1]:
            return f"a pair of {inner[0]} and {inner[1]}"
        if not inner or " or " in inner[0] or inner[0].startswith("one of"):
            return f"a list, each item {inner[0]}" if inner else "a list"
        noun = inner[0].removeprefix("a ").removeprefix("an ")
        first, _, rest = noun.partition(" of ")
        return (
            f"a list of {first}s of {rest}" if rest else f"a list of {first}s"
        )
    return _WORDS.get(base, getattr(base, "__name__", str(base)))


def matches(value: Any, annotation: Any) -> bool:
    """Return whether a YAML value matches a type annotation."""
    if annotation is Any or isinstance(annotation, typing.TypeVar):
        return True
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        if length_unit(annotation):
            return _matches_length(value, annotation)
        return matches(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, a) for a in arguments)
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    base = dict if typing.is_typeddict(annotation) else origin or annotation
    if base is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if base is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if base in (list, tuple, Sequence, Iterable):
        return isinstance(value, (list, tuple)) and _items_match(
            value, base, arguments
        )
    if base in (dict, Mapping):
        if not isinstance(value, dict):
            return False
        inner = arguments[1] if len(arguments) == 2 else Any
        return all(matches(item, inner) for item in value.values())
    return isinstance(value, base) if isinstance(base, type) else True


def _matches_length(value: Any, annotation: Any) -> bool:
    unit = length_unit(annotation)
    if value is None:
        return unit is not None and unit.default is not None
    return matches(value, Duration)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or an empty string."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:
        by_lower_case = {name.lower(): name for name in known}
        lower_case = difflib.get_close_matches(
            word.lower(), list(by_lower_case), n=1, cutoff=0.6
        )
        close = [by_lower_case[name] for name in lower_case]
    return f"; did you mean '{close[0]}'?" if close else ""


def _items_match(value: Sequence, base: type, arguments: tuple) -> bool:
    if base is tuple and arguments and Ellipsis not in arguments:
        if len(value) != len(arguments):
            return False
        return all(map(matches, value, arguments))
    return not arguments or all(matches(v, arguments[0]) for v in value)


def _top_level_faults(
    tree: ConfigTree,
    top_level: dict[str, Argument],
    blocks: dict[str, tuple[str, ...]],
) -> Iterator[str]:
    known = [*top_level, *blocks, *names(), *shared_names()]
    for key, value in tree.values.items():
        path = (key,)
        component = find(key)
        if key in blocks:
            if value is not None:
                yield from _typed_faults(tree, path, value, blocks[key])
        elif key in top_level:
            if not matches(value, top_level[key].annotation):
                yield (
                    f"{key} is {value!r}, expected {type_name(top_level[key].annotation)} "
                    f"({tree.origin(path)})"
                )
        elif component:
            if not isinstance(value, dict):
                yield f"{key} is {value!r}, expected a mapping of its settings ({tree.origin(path)})"
            else:
                yield from _component_faults(
                    tree, path, component, value, (), check_missing=False
                )
        elif key not in shared_names():
            yield f"unknown key '{key}' ({tree.origin(path)}){did_you_mean(key, known)}"
    for name, owner, argument in _shared_arguments():
        if name in tree.values and not matches(
            tree.values[name], argument.annotation
        ):
            yield (
                f"{name} is {tree.values[name]!r}, {owner} expects {type_name(argument.annotation)} "
                f"({tree.origin((name,))})"
            )


def _shared_arguments() -> Iterator[tuple[str, str, Argument]]:
    seen = set()
    for component in components():
        for name in component.share:
            if name not in seen:
                seen.add(name)
                yield name, component.name, component.arguments[name]


def _typed_faults(
    tree: ConfigTree,
    path: KeyPath,
    value: Any,
    supplied: tuple[str, ...] = (),
) -> Iterator[str]:
    """Yield the faults of a value that names a component: a registered name, or a mapping with `type`."""
    place = tree.origin(path)
    if isinstance(value, str):
        component = find(value)
        settings = tree.values.get(value) or {}
        if component is None:
            yield (
                f"{dotted(path)} names '{value}', which is not registered "
                f"({place}){did_you_mean(value, names())}"
            )
            return
        circle = _circle(tree, value)
        if circle:
            yield f"{dotted(path)} names '{value}', which needs itself: {' -> '.join(circle)} ({place})"
        elif isinstance(settings, dict):
            yield from _missing_faults(
                tree, path, component, settings, supplied
            )
        return
    if not isinstance(value, dict):
        yield f"{dotted(path)} is {value!r}, expected a registered name or a mapping with 'type' ({place})"
        return
    if not isinstance(value.get("type"), str):
        yield f"{dotted(path)} has no 'type' that names a class ({place})"
        return
    component = find(value["type"])
    if component is None:
        yield (
            f"{dotted(path)}.type is '{value['type']}', which is not registered "
            f"({place}){did_you_mean(value['type'], names()) or _OF_YOUR_OWN}"
        )
        return
    settings = {key: setting for key, setting in value.items() if key != "type"}
    yield from _component_faults(tree, path, component, settings, supplied)


def _circle(
    tree: ConfigTree, spec: Any, chain: tuple[str, ...] = ()
) -> tuple[str, ...] | None:
    """Return the chain of names on which a component is injected into itself, or None."""
    name: Any = None
    settings: Any = None
    if isinstance(spec, str):
        if spec in chain:
            return (*chain, spec)
        name = spec
        settings = tree.values.get(spec)
        chain = (*chain, spec)
    elif isinstance(spec, dict):
        name = spec.get("type")
        settings = spec
    component = find(name) if isinstance(name, str) else None
    if component is None or not isinstance(settings, dict):
        return None
    for key in component.inject:
        for _, part in _injected((), settings.get(key)):
            circle = _circle(tree, part, chain)
            if circle:
                return circle
    return None


def _component_faults(
    tree: ConfigTree,
    path: KeyPath,
    component: Component,
    settings: dict,
    supplied: tuple[str, ...],
    *,
    check_missing: bool = True,
) -> Iterator[str]:
    arguments = component.arguments
    for key, value in settings.items():
        here = (*path, key)
        if key in supplied:
            yield f"{dotted(here)} is set by the program, not by a configuration ({tree.origin(here)})"
        elif key not in arguments:
            if not component.accepts_anything:
                yield (
                    f"unknown key '{dotted(here)}' ({tree.origin(here)}){did_you_mean(key, list(arguments))}"
                )
        elif key in component.inject:
            if value is not None:
                for item_path, item in _injected(here, value):
                    yield from _typed_faults(tree, item_path, item)
        elif not _is_allowed(value, arguments[key]):
            yield (
                f"{dotted(here)} is {value!r}, expected {type_name(arguments[key].annotation)} "
                f"({tree.origin(here)})"
            )
        else:
            yield from _length_faults(tree, here, value, arguments[key])
        if (
            key in component.share
            and key in tree.values
            and tree.values[key] != value
        ):
            yield (
                f"{dotted(here)} is {value!r} ({tree.origin(here)}) but the top level says {key}: "
                f"{tree.values[key]!r} ({tree.origin((key,))}); keep one of them"
            )
    if check_missing:
        yield from _missing_faults(tree, path, component, settings, supplied)


def _is_allowed(value: Any, argument: Argument) -> bool:
    """Return whether a value is the default of an argument or has its type."""
    return value == argument.default or matches(value, argument.annotation)


def _length_faults(
    tree: ConfigTree, path: KeyPath, value: Any, argument: Argument
) -> Iterator[str]:
    """Yield the faults of lengths with the right type: numbers out of range, texts that are not lengths."""
    for here, written, unit in lengths_of(value, argument.annotation, path):
        try:
            given = read_duration(written, dotted(here), unit.unit).unit
        except ConfigError as error:
            yield f"{error} ({tree.origin(here)})"
        else:
            if unit.before_data and given == "steps":
                yield f"{dotted(here)} is {written!r}, {_NOT_IN_STEPS} ({tree.origin(here)})"


def _missing_faults(
    tree: ConfigTree,
    path: KeyPath,
    component: Component,
    settings: dict,
    supplied: tuple[str, ...],
) -> Iterator[str]:
    for key, argument in component.arguments.items():
        if (
            argument.default is REQUIRED
            and key not in settings
            and key not in supplied
        ):
            if key in component.inject:
                yield f"{dotted(path)} needs '{key}', the name of a registered class ({tree.origin(path)})"
            else:
                yield (
                    f"{dotted((*path, key))} is missing, expected {type_name(argument.annotation)} "
                    f"({tree.origin(path)})"
                )


def _injected(path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Any]]:
    """Yield path and value of each component in an injected argument, which may be a list of components."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield (*path, index), item
    else:
        yield path, value


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
