"""What a run starts from: a training state with `-r`, weights with `-t`, or nothing. Settings are read and not changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.yaml_config import RunSettings
from ..detection.weight_file import WeightFile, read_weights
from ..runtime.distributed import broadcast_object
from ..runtime.log import logger
from ..runtime.weight_files import refuse_address
from .checkpoint import LAST, PREVIOUS, CheckpointFolder

AUTO = "auto"
"""In place of a file to resume from: `last.pth` of the output folder, or a new run if there is none."""


@dataclass(frozen=True)
class Start:
    """The files that `-r` and `-t` name, read."""

    file: WeightFile | None = None
    """Weights that the model begins with, is evaluated with, or had when its run was stopped."""
    state: dict[str, Any] | None = None
    """All of a run that is resumed; None for a new run and for an evaluation."""
    tunes: bool = False
    """Whether the weights are those of another run, whose classes may differ (`-t`)."""

    @property
    def path(self) -> Path | None:
        """The file that was read."""
        return None if self.file is None else self.file.path

    @property
    def keeps_classes(self) -> bool:
        """Whether the classes of the file hold, not those of the data."""
        return not self.tunes


def read_start(settings: RunSettings, folder: CheckpointFolder) -> Start:
    """Read the weights of `-t`, those of `-r` with `--test-only`, or the training state of `-r`.

    Args:
        settings: of the run.
        folder: the run's checkpoints, for `-r auto`.

    Raises:
        CheckpointError: if a file cannot be used.
        NumericsError: if it holds NaN or infinity.
    """
    resume = _file_to_resume(settings, folder)
    if resume is not None and not settings.test_only:
        state, found = folder.load_last(Path(refuse_address(resume)).expanduser())
        return Start(WeightFile(found, state["model"], state["meta"]), state)
    if resume is not None:
        return Start(read_weights(resume))
    if settings.tuning:
        return Start(read_weights(settings.tuning), tunes=True)
    return Start()


def _file_to_resume(settings: RunSettings, folder: CheckpointFolder) -> str | None:
    """Return the file that `-r` stands for, on every rank alike."""
    if settings.resume != AUTO:
        return settings.resume
    last = folder.folder / LAST
    found = broadcast_object(last.exists() or last.with_name(PREVIOUS).exists())
    logger.info("-r auto: %s", f"going on from {last}" if found else f"there is no {last}, a new run begins")
    return str(last) if found else None


def resumes_in(folder: Path, resume: str | None) -> bool:
    """Return whether `-r` names the training state in a run's own output folder."""
    if resume is None:
        return False
    if resume == AUTO:
        return any((folder / name).exists() for name in (LAST, PREVIOUS))
    path = Path(resume)
    return path.name in (LAST, PREVIOUS) and path.parent.resolve() == folder.resolve()
