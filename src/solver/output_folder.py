"""Lock the output folder of a run, and refuse to overwrite files that this project did not write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import ConfigError
from ..core.yaml_config import RunSettings
from ..runtime.distributed import is_main, world_size
from ..runtime.files import locked, prepare_output_dir
from ..runtime.own_files import is_ours, refuse_foreign, refuse_replacing_inputs
from .checkpoint import BEST, LAST, NUMBERED, PREVIOUS, CheckpointFolder
from .earlier_runs import CONFIG, EARLIER, EVALUATION, refuse_earlier_run
from .numerics import BAD_BATCH
from .start_weights import AUTO, resumes_in
from .writers import CURVES_FILE, LOG_FILE, PICTURES, TABLE_FILE

ADVICE = "move it away or choose another --output-dir"

HEADERS = {"train": "images.train.npz", "val": "images.val.npz"}
"""Files with the header data of all images, by part of the data."""


@contextmanager
def claimed(settings: RunSettings) -> Iterator[CheckpointFolder]:
    """Lock the output folder for a training run, and yield its checkpoints.

    Raises:
        ConfigError: if another run has locked it or left results there, or if this run would replace files
            that are not results of this project.
    """
    folder = Path(settings.output_dir)
    checkpoints = CheckpointFolder(folder)
    if not is_main():
        yield checkpoints
        return
    prepare_output_dir(folder)
    with locked(folder):
        if resumes_in(folder, settings.resume):
            checkpoints.set_damaged_best_aside()
        _refuse_replacing(folder, settings)
        refuse_another_run(settings)
        checkpoints.clean_up()
        yield checkpoints


def refuse_another_run(settings: RunSettings) -> None:
    """Check that a new run does not start in the folder of another run, unless `overwrite` is set.

    With `-r auto` a run starts again by itself, perhaps before its first checkpoint, so results of an earlier
    start are moved and not refused.

    Raises:
        ConfigError: if the folder holds another run.
    """
    folder = Path(settings.output_dir)
    resume = settings.resume
    if settings.overwrite or settings.test_only:
        return
    if resume == AUTO or resumes_in(folder, resume):
        return
    if resume is not None and not Path(resume).expanduser().exists():
        return  # a misspelled file is reported when it is read
    refuse_earlier_run(folder, [settings.tuning, resume])


def prepare_for_evaluation(folder: Path) -> None:
    """Create the output folder of an evaluation.

    Raises:
        ConfigError: if the evaluation would replace files that are not results of this project.
    """
    if is_main():
        prepare_output_dir(folder)
        names = (EVALUATION, BAD_BATCH, HEADERS["val"])
        refuse_foreign([folder / name for name in names], ADVICE)


def _refuse_replacing(folder: Path, settings: RunSettings) -> None:
    """Raise if a run would replace files that are not results of this project."""
    checkpoints = [folder / name for name in (BEST, LAST, PREVIOUS)]
    checkpoints += sorted((folder / NUMBERED).glob("epoch*.pth"))
    resumes_here = resumes_in(folder, settings.resume)
    if not resumes_here or not _is_of_a_version_without_marks(folder):
        results = [*_other_results(folder), *checkpoints]
        if resumes_here:
            # A damaged training state has no mark, but may be replaced. Symbolic links are still refused.
            for state in (folder / LAST, folder / PREVIOUS):
                if not state.is_symlink():
                    results.remove(state)
        refuse_foreign(results, ADVICE)
    for name in (NUMBERED, PICTURES, EARLIER):
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise ConfigError(
                f"{path} is not a folder, and this run would write into it; {ADVICE}"
            )
    inputs = {
        "-t": settings.tuning,
        "-r": None if resumes_here else settings.resume,
    }
    refuse_replacing_inputs(checkpoints, inputs)


def _other_results(folder: Path) -> list[Path]:
    """Return the files that a run writes in addition to checkpoints."""
    names = [CONFIG, LOG_FILE, TABLE_FILE, CURVES_FILE]
    names += [BAD_BATCH, *HEADERS.values()]
    names += [f"stacks.rank{number}.txt" for number in range(world_size())]
    return [folder / name for name in names]


def _is_of_a_version_without_marks(folder: Path) -> bool:
    """Return whether an earlier version wrote the run: it did not mark results, so no file has a mark."""
    found = False
    for path in (folder / LAST, folder / PREVIOUS):
        if path.is_file() and not path.is_symlink():
            found = True
            if is_ours(path):
                return False
    return found
