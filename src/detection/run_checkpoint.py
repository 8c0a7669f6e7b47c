"""The checkpoint that a user means by a run folder."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import CheckpointError
from ..core.paths import user_path

BEST = "best.pth"
LAST = "last.pth"


def checkpoint_of(model: str | Path, *, prefer: str = BEST) -> Path | str:
    """Return the checkpoint in a run folder; a file or a name is returned as it is.

    Args:
        model: run folder, checkpoint, or name of a published detector.
        prefer: file to take if a run folder has both.

    Raises:
        CheckpointError: if the folder has neither `best.pth` nor `last.pth`.
    """
    path = user_path(model)
    if not path.is_dir():
        return model
    others = [name for name in (BEST, LAST) if name != prefer]
    for name in (prefer, *others):
        if (path / name).is_file():
            return path / name
    if (path / "model.safetensors").is_file():  # a folder of transformers
        return path / "model.safetensors"
    raise CheckpointError(
        f"{path} contains neither {BEST} nor {LAST}, expected the folder of a run or a checkpoint file"
    )
