"""The trainings that a plan needs, and the folder of each.

The folder of a run is named after its configuration and a digest of its resolved settings. Plans that need
the same run, such as a common baseline, therefore share it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.config_file import parse_overrides
from ...core.errors import ConfigError
from ...core.validate import did_you_mean
from ...core.yaml_config import YAMLConfig
from .plan import TEACHER, TEACHER_VIT, Plan, Task, Variant

WITHOUT_EFFECT = frozenset(
    {
        "task",
        "seed",
        "output_dir",
        "summary_dir",
        "print_freq",
        "checkpoint_freq",
        "save_every_steps",
        "save_every_minutes",
        "loggers",
        "use_wandb",
        "project_name",
        "exp_name",
        "report",
    }
)
"""Top-level settings that are not part of the digest, because results do not depend on them."""

WITHOUT_EFFECT_IN_LOADERS = frozenset(
    {"num_workers", "pin_memory", "prefetch_factor", "data_timeout"}
)
"""The same for settings of data loaders."""

BEST = "best.pth"

VIT = "vit.pth"
"""File of a teacher's ViT in its folder."""

_VARIABLE = re.compile(r"\$([A-Z][A-Z0-9_]*)")
"""A name that `--set` gives a value, such as `$DATA`."""


@dataclass(frozen=True)
class Run:
    """One training."""

    group: str
    """Name of the folder that contains the run of every seed: configuration and digest."""
    seed: int
    config: str
    settings: tuple[str, ...]
    """Overrides as "key=value"; variables stand as they are written in the plan."""
    resolved: Mapping[str, Any]
    """The settings of which `group` has the digest."""
    expected_minutes: float | None
    """Expected CPU minutes."""
    teacher: Run | None = None
    """Run whose checkpoint is needed first."""

    def folder(self, results: Path) -> Path:
        """Return the output folder of the training."""
        return results / self.group / f"seed{self.seed}"

    def variables(self) -> set[str]:
        """Return the names that need a value, without that of the teacher."""
        found = set(_VARIABLE.findall("\n".join(self.settings)))
        return found - {TEACHER, TEACHER_VIT}

    @property
    def needs_vit(self) -> bool:
        """True if the settings name the file of the teacher's ViT."""
        return f"${TEACHER_VIT}" in "\n".join(self.settings)

    def overrides(
        self, results: Path, variables: Mapping[str, str]
    ) -> list[str]:
        """Return the settings with the values of variables, for `-u` of the trainer."""
        values = dict(variables)
        if self.teacher is not None:
            folder = self.teacher.folder(results)
            values[TEACHER] = str(folder / BEST)
            values[TEACHER_VIT] = str(folder / VIT)
        return [
            _VARIABLE.sub(lambda match: values[match[1]], item)
            for item in self.settings
        ]


@dataclass(frozen=True)
class Side:
    """The runs of one variant on one task, by seed."""

    plan: Plan
    task: Task
    variant: Variant
    runs: Mapping[int, Run]


def sides_of(plan: Plan, task: Task, seeds: Sequence[int]) -> list[Side]:
    """Return the runs of all variants of a plan on one task, in the order of the plan.

    Args:
        plan: checked plan.
        task: one of its tasks.
        seeds: random seeds.

    Raises:
        ConfigError: if a configuration or a setting of a run is wrong, as the trainer would report it.
    """
    teachers = {
        name: _runs(plan, task, teacher, (plan.teacher_seed,), None)
        for name, teacher in plan.teachers.items()
    }
    found = []
    for variant in plan.variants.values():
        teacher = None
        if variant.teacher in teachers:
            teacher = teachers[variant.teacher][plan.teacher_seed]
        runs = _runs(plan, task, variant, seeds, teacher)
        found.append(Side(plan, task, variant, runs))
    return found


def _runs(
    plan: Plan,
    task: Task,
    variant: Variant,
    seeds: Sequence[int],
    teacher: Run | None,
) -> dict[int, Run]:
    config = variant.config or task.config
    settings = [*task.settings, *variant.settings]
    settings += variant.task_settings.get(task.name, ())
    if teacher is None and variant.teacher is not None:
        settings = [
            item.replace(f"${TEACHER}", variant.teacher) for item in settings
        ]
    where = f"{plan.file}, variant {variant.name} on task {task.name}"
    resolved = _resolved(config, settings, where)
    if teacher is not None:
        resolved[TEACHER] = f"{teacher.group}, seed {teacher.seed}"
    text = json.dumps(resolved, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    minutes = None
    if task.cpu_minutes is not None:
        minutes = task.cpu_minutes * variant.cost
    return {
        seed: Run(
            group=f"{Path(config).stem}-{digest}",
            seed=seed,
            config=config,
            settings=tuple(settings),
            resolved=resolved,
            expected_minutes=minutes,
            teacher=teacher,
        )
        for seed in seeds
    }


def _resolved(
    config: str, settings: Sequence[str], where: str
) -> dict[str, Any]:
    """Return the checked settings of a run, without those that do not change its results."""
    try:
        cfg = YAMLConfig(config, **parse_overrides(list(settings)))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    kept: dict[str, Any] = {}
    for key, value in cfg.yaml_cfg.items():
        if key in WITHOUT_EFFECT:
            continue
        if key.endswith("_dataloader") and isinstance(value, Mapping):
            value = {
                name: item
                for name, item in value.items()
                if name not in WITHOUT_EFFECT_IN_LOADERS
            }
        kept[key] = value
    return kept


def in_order(sides: Sequence[Side]) -> Iterator[Run]:
    """Yield each run once, in the order in which runs should start.

    All variants of a seed come before the next seed, so that an unfinished study has complete pairs. A
    teacher comes before its first student.
    """
    seen = set()
    seeds = list(dict.fromkeys(seed for side in sides for seed in side.runs))
    for seed in seeds:
        for side in sides:
            run = side.runs.get(seed)
            if run is None:
                continue
            for needed in (run.teacher, run):
                if needed is None:
                    continue
                key = (needed.group, needed.seed)
                if key not in seen:
                    seen.add(key)
                    yield needed


def chosen(names: Sequence[str], known: Sequence[str], flag: str) -> list[str]:
    """Return the names given with a flag, or all known ones if none are given.

    Raises:
        ConfigError: for a name that is not known.
    """
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{flag} {name}: expected one of {', '.join(known)}{did_you_mean(name, list(known))}"
            )
    return [name for name in known if name in names or not names]


def parse_variables(items: Sequence[str]) -> dict[str, str]:
    """Convert `["DATA=/data/a"]` to `{"DATA": "/data/a"}`.

    Raises:
        ConfigError: for an item without "=" or with a name that is not in capital letters.
    """
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not value or not _VARIABLE.fullmatch(f"${name}"):
            raise ConfigError(
                f"--set {item}: expected NAME=VALUE with a name in capital letters, such as "
                "DATA=/path/to/data"
            )
        found[name] = value
    return found


def refuse_missing_variables(
    sides: Sequence[Side], variables: Mapping[str, str]
) -> None:
    """Check that every variable has a value.

    Raises:
        ConfigError: with the first variable that has none, and the task that needs it.
    """
    for side in sides:
        for run in side.runs.values():
            for name in sorted(run.variables() - set(variables)):
                raise ConfigError(
                    f"{side.plan.file}: task {side.task.name} needs {name}; pass --set {name}=VALUE, or "
                    "choose other tasks with --task"
                )
