"""Read the file that a run starts from: a training state (`-r`) or weights (`-t`)."""

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
"""Value of `-r` that resumes from `last.pth` of the output folder, or starts a new run if there is none."""


@dataclass(frozen=True)
class Start:
    """Content of the file given by `-r` or `-t`."""

    file: WeightFile | None = None
    """Weights to start from, to evaluate or to resume; None for a new run without start weights."""
    state: dict[str, Any] | None = None
    """Training state of the run to resume; None for a new run and for an evaluation."""
    tunes: bool = False
    """Whether the weights come from another run, whose classes may differ (`-t`)."""

    @property
    def path(self) -> Path | None:
        """File that was read."""
        return None if self.file is None else self.file.path

    @property
    def keeps_classes(self) -> bool:
        """True if the classes of the file are used, False if those of the data are."""
        return not self.tunes


def read_start(settings: RunSettings, folder: CheckpointFolder) -> Start:
    """Read the weights of `-t`, those of `-r` with `--test-only`, or the training state of `-r`.

    Args:
        settings: settings of the run.
        folder: checkpoints of the run, for `-r auto`.

    Raises:
        CheckpointError: if a file is missing, damaged or of another kind.
        NumericsError: if it holds NaN or infinity.
    """
    resume = _file_to_resume(settings, folder)
    if resume is not None and not settings.test_only:
        state, found = folder.load_last(
            Path(refuse_address(resume)).expanduser()
        )
        return Start(WeightFile(found, state["model"], state["meta"]), state)
    if resume is not None:
        return Start(read_weights(resume, settings.family))
    if settings.tuning:
        return Start(read_weights(settings.tuning, settings.family), tunes=True)
    return Start()


def _file_to_resume(
    settings: RunSettings, folder: CheckpointFolder
) -> str | None:
    """Return the file to resume from, the same on every rank; resolves `-r auto`."""
    if settings.resume != AUTO:
        return settings.resume
    last = folder.folder / LAST
    found = broadcast_object(last.exists() or last.with_name(PREVIOUS).exists())
    if not found:
        logger.info("-r auto: there is no %s; starting a new run", last)
        return None
    logger.info("-r auto: resuming from %s", last)
    return str(last)


def resumes_in(folder: Path, resume: str | None) -> bool:
    """Return whether `-r` is the training state in the run's own output folder."""
    if resume is None:
        return False
    if resume == AUTO:
        return any((folder / name).exists() for name in (LAST, PREVIOUS))
    path = Path(resume)
    return (
        path.name in (LAST, PREVIOUS)
        and path.parent.resolve() == folder.resolve()
    )
