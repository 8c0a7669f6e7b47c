"""Move the results of an earlier run aside when a new run starts in the same folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core.errors import ConfigError
from ..runtime.log import logger
from ..runtime.own_files import is_ours
from .checkpoint import BEST, LAST, NUMBERED, PREVIOUS, SET_ASIDE
from .loggers.logged_state import STATE
from .numerics import BAD_BATCH
from .writers import CURVES_FILE, LOG_FILE, PICTURES, TABLE_FILE

EARLIER = "earlier"
"""Folder of earlier runs; each is in a subfolder numbered from 1."""

CONFIG = "config.yml"
"""File with the resolved configuration of a run."""

EVALUATION = "eval.json"
"""Result file of `--test-only`."""

REPORT = "report.html"
"""Page about the best checkpoint, written at the end of a run."""

_RESULTS = (
    BEST,
    LAST,
    PREVIOUS,
    f"{SET_ASIDE}*.pth",
    f"{NUMBERED}/epoch*.pth",
    LOG_FILE,
    TABLE_FILE,
    CURVES_FILE,
    REPORT,
    CONFIG,
    EVALUATION,
    BAD_BATCH,
    STATE.format("*"),
    f"{PICTURES}/*.jpg",
    "best.onnx",
    "best.json",
)

_CURVES = "summary/events.out.tfevents.*"
"""TensorBoard event files; left in place, they would show the curves of both runs as one."""


def set_aside_earlier_run(
    folder: Path, inputs: Sequence[str | None] = ()
) -> Path | None:
    """Move the results of an earlier run to `earlier/1`, `earlier/2` and so on in the same folder.

    Files that this project did not write are not moved. The results of a run without a checkpoint and without
    a finished epoch are not kept.

    Args:
        folder: output folder, locked by this run.
        inputs: files that the new run starts from; they are not moved.

    Returns:
        The new folder; None if nothing was moved.
    """
    results = _results_to_move(folder, inputs)
    worth_keeping = _worth_keeping(results)
    if not worth_keeping:
        return None
    number = 1
    while os.path.lexists(folder / EARLIER / str(number)):
        number += 1
    target = folder / EARLIER / str(number)
    for path in results:
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, place)  # also works across file systems
    names = ", ".join(path.name for path in worth_keeping)
    logger.warning(
        "%s contains an earlier run, which this run does not resume: its %s and its other results were "
        "moved to %s",
        folder,
        names,
        target,
    )
    return target


def refuse_earlier_run(folder: Path, inputs: Sequence[str | None] = ()) -> None:
    """Check that a new run does not start in the folder of another run.

    Args:
        folder: output folder; it may be missing.
        inputs: as for `set_aside_earlier_run`.

    Raises:
        ConfigError: if the folder holds a checkpoint or a finished epoch of another run.
    """
    found = _worth_keeping(_results_to_move(folder, inputs))
    if found:
        names = ", ".join(path.name for path in found)
        raise ConfigError(
            f"{folder} holds another run ({names}), which a new run would replace; resume it with -r auto, "
            f"choose another --output-dir, or pass --overwrite, which moves its results to "
            f"{folder / EARLIER}"
        )


def _results_to_move(folder: Path, inputs: Sequence[str | None]) -> list[Path]:
    """Return the results of an earlier run, without the files that the new run starts from."""
    stay = [
        path for path in inputs if path is not None and os.path.exists(path)
    ]
    results: list[Path] = []
    for path in _results(folder):
        if not any(path.samefile(other) for other in stay):
            results.append(path)
    return results


def _worth_keeping(results: Sequence[Path]) -> list[Path]:
    """Return the checkpoints and the log, or nothing if all of them are empty."""
    kept = []
    for path in results:
        if path.suffix == ".pth" or path.name == LOG_FILE:
            kept.append(path)
    return kept if any(path.stat().st_size for path in kept) else []


def _results(folder: Path) -> Iterator[Path]:
    """Yield the results of a run in a folder that this project wrote."""
    for pattern in _RESULTS:
        yield from filter(is_ours, sorted(folder.glob(pattern)))
    yield from sorted(folder.glob(_CURVES))
