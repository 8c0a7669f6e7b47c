"""Going on with a run: whether it still is the same run, and where its data continues."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.config_file import dotted, parse_yaml
from ..core.errors import ConfigError
from ..runtime.log import logger

FREE = frozenset(
    {
        "task",
        "resume",
        "tuning",
        "test_only",
        "device",
        "output_dir",
        "summary_dir",
        "print_freq",
        "checkpoint_freq",
        "save_every_steps",
        "save_every_minutes",
        "use_wandb",
        "project_name",
        "exp_name",
        "find_unused_parameters",
        "rank_timeout",
        "memory_trial",
        "override",
        "strict",
    }
)
"""Top-level settings that do not change what a run computes."""

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
    }
)
"""Likewise of data loaders; another batch size is told of by itself, and moved data are compared by their content."""

NAMED = 20


def check_same_run(saved: str, present: Mapping[str, Any], *, override: bool) -> None:
    """Compare the configuration that a run began with to the present one.

    Args:
        saved: as YAML, from the checkpoint.
        present: as a dict.
        override: changes are wanted; they are told of.

    Raises:
        ConfigError: with the keys that differ, if they are not free to.
    """
    before, _ = parse_yaml(saved, "the checkpoint's configuration")
    changes = [
        change for change in _differences(before, present) if change[0] != ("seed",) or "seed" in present
    ]  # else that of the run holds
    if not changes:
        return
    seed = next((change for change in changes if change[0] == ("seed",)), None)
    if seed and override:
        raise ConfigError(
            f"seed was {seed[1]}, is {seed[2]}: a run that is resumed keeps its seed; leave it out, or start a new run "
            "from its weights with -t"
        )
    more = f" ... and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
    told = (
        "; ".join(f"{dotted(path)} was {_short(old)}, is {_short(new)}" for path, old, new in changes[:NAMED])
        + more
    )
    if not override:
        raise ConfigError(
            f"the configuration is not that of the run to go on with: {told}; go on with the changes by --override, or start a new run from its "
            f"weights with -t"
        )
    logger.warning("going on with a changed configuration: %s", told)


def resume_hint(last: Path, arguments: Sequence[str] | None = None) -> str:
    """Return what to type to resume a run, safe to paste: the command that started it, with `-r auto`.

    Args:
        last: the file to resume from, for programs other than `train.py`.
        arguments: the command line; None for that of this process.
    """
    script, *arguments = sys.argv if arguments is None else arguments
    if Path(script).name != "train.py":
        return f"resume with -r {shlex.quote(str(last))}"
    kept: list[str] = []
    for argument in arguments:
        if kept and kept[-1] in ("-r", "--resume"):
            kept[-1] = ""  # the flag goes with its value
        elif not argument.startswith("--resume=") and not re.match(r"-r.", argument):
            kept.append(argument)
    kept = [argument for argument in kept if argument]
    at = next((index for index, argument in enumerate(kept) if argument in ("-u", "--update")), len(kept))
    command = shlex.join([script, *kept[:at], "-r", "auto", *kept[at:]])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"resume with the same torchrun command and: {command}"
    return f"resume with: python {command}"


def _differences(
    old: Any, new: Any, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], Any, Any]]:
    """Walk two configurations and yield (path, old, new) of what differs and matters."""
    for key in dict.fromkeys((*old, *new)):
        here = (*path, key)
        if (not path and key in FREE) or (
            path and str(path[0]).endswith("_dataloader") and key in FREE_OF_LOADERS
        ):
            continue
        before, after = old.get(key, _UNSET), new.get(key, _UNSET)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, here)
        elif before != after and not (before in (None, _UNSET) and after in (None, _UNSET)):
            yield here, before, after


class _Unset:
    def __repr__(self) -> str:
        return "not set"


_UNSET = _Unset()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
