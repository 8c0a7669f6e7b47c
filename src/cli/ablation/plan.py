"""Read a plan: a question, the tasks on which it is asked, the variants that are compared, and the seeds.

A plan is a YAML file, which may include others as configurations do. `configs/ablation/` has examples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.config_file import ConfigTree, load_config_tree
from ...core.errors import ConfigError
from ...core.schemas import shown
from ...core.validate import did_you_mean
from ...core.yaml_text import dotted

TEACHER = "TEACHER"
"""Name that stands for a teacher's checkpoint in the settings of a variant, as `$TEACHER`."""

TEACHER_VIT = "TEACHER_VIT"
"""Name that stands for a file with the teacher's ViT."""

DEFAULT_SEEDS = (0, 1, 2)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Names become parts of file names."""


@dataclass(frozen=True)
class Task:
    """A data set with a configuration, on which all variants are trained."""

    name: str
    title: str
    config: str
    """Configuration file of the baseline."""
    settings: tuple[str, ...]
    """Overrides of the configuration, as "key=value"."""
    cpu_minutes: float | None
    """Expected CPU minutes of a run of cost 1; None if they are not known."""


@dataclass(frozen=True)
class Variant:
    """One side of a comparison, or a teacher."""

    name: str
    config: str | None
    """Configuration file instead of the task's."""
    settings: tuple[str, ...]
    task_settings: Mapping[str, tuple[str, ...]]
    """Settings that are added on one task, by its name."""
    teacher: str | None
    """Name of a teacher of the plan, or a checkpoint file."""
    cost: float
    """Expected CPU minutes of a run, divided by those of the task."""


@dataclass(frozen=True)
class Plan:
    """A checked plan."""

    file: Path
    name: str
    question: str
    tasks: Mapping[str, Task]
    variants: Mapping[str, Variant]
    teachers: Mapping[str, Variant]
    teacher_seed: int
    baseline: str
    seeds: tuple[int, ...]
    equal_steps: bool
    """Whether all runs of a task must have the same number of optimizer steps."""


def load_plan(path: str | Path) -> Plan:
    """Read and check a plan.

    Args:
        path: YAML file.

    Raises:
        ConfigError: for the first mistake, with its place in the file.
    """
    block = _Block(load_config_tree(path), ())
    block.refuse_unknown(
        "name",
        "question",
        "tasks",
        "variants",
        "teachers",
        "teacher_seed",
        "baseline",
        "seeds",
        "equal_steps",
    )
    plan = Plan(
        file=Path(path),
        name=block.name("name", Path(path).stem),
        question=block.text("question"),
        tasks={name: _task(part) for name, part in block.blocks("tasks")},
        variants={
            name: _variant(part) for name, part in block.blocks("variants")
        },
        teachers={
            name: _variant(part)
            for name, part in block.blocks("teachers", may_be_empty=True)
        },
        teacher_seed=block.integer("teacher_seed", 0),
        baseline=block.text("baseline"),
        seeds=block.integers("seeds", DEFAULT_SEEDS),
        equal_steps=block.boolean("equal_steps", True),
    )
    _check_names(plan, block)
    return plan


def _task(block: _Block) -> Task:
    block.refuse_unknown("title", "config", "settings", "cpu_minutes")
    return Task(
        name=block.key,
        title=block.text("title", block.key),
        config=block.text("config"),
        settings=block.settings("settings"),
        cpu_minutes=block.positive("cpu_minutes", None),
    )


def _variant(block: _Block) -> Variant:
    block.refuse_unknown(
        "config", "settings", "task_settings", "teacher", "cost"
    )
    by_task = block.block("task_settings")
    task_settings = {key: by_task.settings(key) for key in by_task.values}
    return Variant(
        name=block.key,
        config=block.text("config", None),
        settings=block.settings("settings"),
        task_settings=task_settings,
        teacher=block.text("teacher", None),
        cost=block.positive("cost", 1.0),
    )


def _check_names(plan: Plan, block: _Block) -> None:
    """Check that everything that a plan names exists in it."""
    if plan.baseline not in plan.variants:
        block.refuse(
            "baseline", "one of the variants", list(plan.variants), hint=True
        )
    if len(plan.variants) < 2:
        block.refuse("variants", "at least two variants")
    for group, variants in (
        ("variants", plan.variants),
        ("teachers", plan.teachers),
    ):
        for variant in variants.values():
            part = block.block(group).block(variant.name)
            _check_variant(plan, variant, part, is_teacher=group == "teachers")


def _check_variant(
    plan: Plan, variant: Variant, block: _Block, *, is_teacher: bool
) -> None:
    by_task = block.block("task_settings")
    for task in variant.task_settings:
        if task not in plan.tasks:
            known = ", ".join(plan.tasks)
            raise ConfigError(
                f"{by_task.place(task)}: {by_task.path(task)} is not a task of this plan ({known})"
                f"{did_you_mean(task, list(plan.tasks))}"
            )
    if variant.teacher is None:
        return
    if is_teacher:
        raise ConfigError(
            f"{block.place('teacher')}: {block.path('teacher')} is set, but a teacher cannot have a teacher; "
            "remove it"
        )
    is_file = Path(variant.teacher).suffix == ".pth"
    if variant.teacher not in plan.teachers and not is_file:
        block.refuse(
            "teacher",
            "one of the plan's teachers or a .pth file",
            list(plan.teachers),
            hint=True,
        )


_REQUIRED: Any = object()


class _Block:
    """A mapping of a plan, whose values are read with a check of their types."""

    def __init__(self, tree: ConfigTree, keys: tuple[str, ...]) -> None:
        self.tree = tree
        self.keys = keys
        value: Any = tree.values
        for key in keys:
            value = (value or {}).get(key)
        self.values = value if value is not None else {}
        if not isinstance(self.values, dict):
            raise ConfigError(
                f"{self.place()}: {self.path()} is {shown(value)}, expected a mapping"
            )

    @property
    def key(self) -> str:
        """Name of the block in the mapping that contains it."""
        return self.keys[-1]

    def path(self, *keys: str) -> str:
        """Return the path of a key, such as "variants.random.settings"."""
        return dotted((*self.keys, *keys))

    def place(self, *keys: str) -> str:
        """Return the file and the line of a key."""
        return self.tree.origin((*self.keys, *keys))

    def refuse_unknown(self, *known: str) -> None:
        """Raise an error if the mapping has another key."""
        for key in self.values:
            if key not in known:
                raise ConfigError(
                    f"{self.place(key)}: {self.path(key)} is not a key of a plan"
                    f"{did_you_mean(key, known)}; known keys here: {', '.join(known)}"
                )

    def refuse(
        self,
        key: str,
        expected: str,
        known: Sequence[str] = (),
        *,
        hint: bool = False,
    ) -> None:
        """Raise the error about a value, with the nearest known name if wanted."""
        value = self.values.get(key)
        listed = f" ({', '.join(known)})" if known else ""
        nearest = did_you_mean(str(value), list(known)) if hint else ""
        raise ConfigError(
            f"{self.place(key)}: {self.path(key)} is {shown(value)}, expected {expected}{listed}{nearest}"
        )

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a text that is not empty."""
        value = self._value(key, default)
        is_text = isinstance(value, str) and value.strip()
        if value is not default and not is_text:
            self.refuse(key, "a text")
        return value

    def name(self, key: str, default: str) -> str:
        """Return a text that can be part of a file name."""
        value = self.text(key, default)
        if not _NAME.fullmatch(value):
            self.refuse(key, "letters, digits, '_', '-' and '.'")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def positive(self, key: str, default: Any) -> Any:
        """Return a number above 0."""
        value = self._value(key, default)
        if value is default:
            return value
        is_number = isinstance(value, int | float)
        if not is_number or isinstance(value, bool):
            self.refuse(key, "a number above 0")
        if not 0 < value < math.inf:
            self.refuse(key, "a number above 0")
        return float(value)

    def integer(self, key: str, default: int) -> int:
        """Return an integer that is not negative."""
        value = self._value(key, default)
        if not _is_seed(value):
            self.refuse(key, "an integer from 0")
        return value

    def integers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return different integers that are not negative."""
        value = self._value(key, default)
        is_list = isinstance(value, list | tuple) and value
        if not is_list or not all(map(_is_seed, value)):
            self.refuse(key, "a list of integers from 0")
        if len(set(value)) < len(value):
            raise ConfigError(
                f"{self.place(key)}: {self.path(key)} is {list(value)}, expected every number once"
            )
        return tuple(value)

    def settings(self, key: str) -> tuple[str, ...]:
        """Return a list of overrides, each "key=value"."""
        value = self._value(key, ())
        if not isinstance(value, list | tuple):
            self.refuse(key, 'a list of settings such as "ema.decay=0.9999"')
        for number, item in enumerate(value):
            if not isinstance(item, str) or "=" not in item:
                raise ConfigError(
                    f"{self.place(key)}: {self.path(key)}[{number}] is {shown(item)}, expected a setting "
                    'such as "ema.decay=0.9999"'
                )
        return tuple(value)

    def block(self, key: str) -> _Block:
        """Return a mapping below this one, empty if it is not set."""
        return _Block(self.tree, (*self.keys, key))

    def blocks(
        self, key: str, *, may_be_empty: bool = False
    ) -> list[tuple[str, _Block]]:
        """Return the mappings below a key with their names, which can be parts of file names."""
        above = self.block(key)
        if not above.values and not may_be_empty:
            raise ConfigError(
                f"{self.place(key)}: {self.path(key)} is empty, expected a mapping of names to their settings"
            )
        found = []
        for name in above.values:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{above.place(name)}: the name {name!r} in {above.path()} cannot be part of a file "
                    "name; use letters, digits, '_', '-' and '.'"
                )
            found.append((name, above.block(name)))
        return found

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ConfigError(
                f"{self.place()}: {self.path(key)} is not set; a plan needs it"
            )
        return default


def _is_seed(value: Any) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and 0 <= value < 2**31
