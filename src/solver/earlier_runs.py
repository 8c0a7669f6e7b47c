"""What becomes of the results of an earlier run when a new run begins in the same folder: they are moved aside, not replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..runtime.log import logger
from ..runtime.own_files import is_ours
from .checkpoint import BEST, LAST, NUMBERED, PREVIOUS, SET_ASIDE
from .numerics import BAD_BATCH
from .writers import LOG_FILE, PICTURES

EARLIER = "earlier"
"""Folder for earlier runs, in folders numbered from 1."""

CONFIG = "config.yml"
"""The resolved configuration of a run."""

EVALUATION = "eval.json"
"""What `--test-only` writes."""

_RESULTS = (
    BEST,
    LAST,
    PREVIOUS,
    f"{SET_ASIDE}*.pth",
    f"{NUMBERED}/epoch*.pth",
    LOG_FILE,
    CONFIG,
    EVALUATION,
    BAD_BATCH,
    f"{PICTURES}/*.jpg",
    "best.onnx",
    "best.json",
)

_CURVES = "summary/events.out.tfevents.*"
"""Files of TensorBoard, which would show the curves of both runs as one."""


def set_aside_earlier_run(folder: Path, inputs: Sequence[str | None] = ()) -> Path | None:
    """Move the results of an earlier run into `earlier/1`, `earlier/2` and so on below the same folder.

    Files that this project did not write stay where they are. A run that left neither a checkpoint nor a finished epoch
    has nothing worth keeping.

    Args:
        folder: the output folder, held by this run alone.
        inputs: files that the new run starts from, which stay where they are.

    Returns:
        Where they are now; None if there were none.
    """
    stay = [path for path in inputs if path is not None and os.path.exists(path)]
    results = [path for path in _results(folder) if not any(path.samefile(other) for other in stay)]
    worth_keeping = [path for path in results if path.suffix == ".pth" or path.name == LOG_FILE]
    if not any(path.stat().st_size for path in worth_keeping):
        return None
    number = 1
    while os.path.lexists(target := folder / EARLIER / str(number)):
        number += 1
    for path in results:
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, place)  # on another file system, too
    names = ", ".join(path.name for path in worth_keeping)
    logger.warning(
        "%s holds an earlier run, and this one does not resume it: its %s and the rest of its results were moved to %s",
        folder,
        names,
        target,
    )
    return target


def _results(folder: Path) -> Iterator[Path]:
    for pattern in _RESULTS:
        yield from (path for path in sorted(folder.glob(pattern)) if is_ours(path))
    yield from sorted(folder.glob(_CURVES))
