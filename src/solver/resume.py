"""Resume a run: compare its configuration with the present one, and build the command that resumes it.

`start_weights.py` decides what -r and -t mean.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, ConfigError
from ..core.schemas import shown
from ..core.yaml_text import dotted, parse_yaml
from ..runtime.log import logger
from .next_commands import DFINE_GPUS, PROGRAMS, is_command, running_program

FREE = frozenset(
    {
        "task",
        "resume",
        "tuning",
        "family",
        "test_only",
        "device",
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
        "find_unused_parameters",
        "rank_timeout",
        "memory_trial",
        "override",
        "overwrite",
        "report",
        "strict",
        "compile",
    }
)
"""Top-level settings that do not change the results of a run."""

FREE_OF_LOADERS = frozenset(
    {
        "num_workers",
        "pin_memory",
        "prefetch_factor",
        "batch_size",
        "total_batch_size",
        "data_timeout",
        "img_folder",
        "ann_file",
        "watch_files",
        "image_cache",
        "image_cache_gb",
    }
)
"""Settings of data loaders that may change: batch sizes are logged, data are compared by content, and a cache
changes nothing.
"""

NAMED = 20
"""Maximum number of changed settings in a message."""


def check_same_run(
    saved: str, present: Mapping[str, Any], *, override: bool
) -> None:
    """Compare the present configuration with the one the run started with.

    Args:
        saved: configuration of the run as YAML, from the checkpoint.
        present: present configuration.
        override: accept changes and log them.

    Raises:
        ConfigError: if settings that affect results have changed; the message lists them.
        CheckpointError: if the saved configuration is damaged.
    """
    before = _saved_settings(saved)
    changes: list[str] = []
    for path, old, new in _differences(before, present):
        if path == ("seed",):
            if "seed" not in present:
                continue  # the resumed run keeps its own
            if override:
                raise ConfigError(
                    f"seed was {old}, is {new}: a resumed run keeps its random seed; remove the setting, or "
                    "start a new run from its weights with -t"
                )
        changes.append(f"{dotted(path)} was {_short(old)}, is {_short(new)}")
    if not changes:
        return
    listed = "; ".join(changes[:NAMED])
    if len(changes) > NAMED:
        listed += f" ... and {len(changes) - NAMED} more"
    if not override:
        raise ConfigError(
            f"the configuration differs from that of the run to resume: {listed}; accept the changes with "
            "--override, or start a new run from its weights with -t"
        )
    logger.warning("resuming with a changed configuration: %s", listed)


def _saved_settings(text: str) -> dict[str, Any]:
    """Return the settings in a checkpoint.

    Raises:
        CheckpointError: if they are not YAML, or not a mapping.
    """
    try:
        settings, _ = parse_yaml(text, "the configuration in the checkpoint")
    except ConfigError as error:
        raise CheckpointError(
            f"{error}; use another copy of the file"
        ) from None
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"the configuration in the checkpoint is {shown(settings)}, expected a mapping of settings; use "
            "another copy of the file"
        )
    return settings


def resume_hint(last: Path, arguments: Sequence[str] | None = None) -> str:
    """Return the command that resumes a run, quoted for a shell, so that it works when it is copied.

    For `train.py` it is the command that started the run, with `-r auto`.

    Args:
        last: file to resume from, for programs other than `train.py`.
        arguments: command line; None takes that of this process.
    """
    script, *arguments = sys.argv if arguments is None else arguments
    gpus = os.environ.get(DFINE_GPUS)
    if gpus is not None:  # started by `dfine train --gpus N`
        resume = [PROGRAMS[0], "resume", str(last.parent), "--gpus", gpus]
        return f"resume with: {shlex.join(resume)}"
    program = running_program([script])
    if Path(program[0]).name in PROGRAMS and is_command(script):
        return (
            f"resume with: {shlex.join([*program, 'resume', str(last.parent)])}"
        )
    if Path(script).name != "train.py":
        return f"resume with -r {shlex.quote(str(last))}"
    kept: list[str] = []
    for argument in arguments:
        if kept and kept[-1] in ("-r", "--resume"):
            kept[-1] = ""  # drops the flag together with its value
        elif not argument.startswith("--resume=") and not re.match(
            r"-r.", argument
        ):
            kept.append(argument)
    kept = list(filter(None, kept))
    at = len(kept)
    for flag in ("-u", "--update"):
        if flag in kept:
            at = min(at, kept.index(flag))
    command = shlex.join([script, *kept[:at], "-r", "auto", *kept[at:]])
    python = shlex.quote(program[0])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"resume with the same torchrun command and: {command}"
    return f"resume with: {python} {command}"


def _differences(
    old: Any, new: Any, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], Any, Any]]:
    """Yield (path, old, new) for each setting that differs and affects results."""
    free: frozenset[str] = FREE if not path else frozenset()
    if path and str(path[0]).endswith("_dataloader"):
        free = FREE_OF_LOADERS
    for key in dict.fromkeys((*old, *new)):
        if key in free:
            continue
        here = (*path, key)
        before = old.get(key, _UNSET)
        after = new.get(key, _UNSET)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, here)
            continue
        both_unset = before in (None, _UNSET) and after in (None, _UNSET)
        if before != after and not both_unset:
            yield here, before, after


class _Unset:
    """Stands for a setting that a configuration does not have."""

    def __repr__(self) -> str:
        return "not set"


_UNSET = _Unset()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
