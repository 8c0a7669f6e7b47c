"""The folder of a run: `runs/NAME`, `runs/NAME2` and so on for a new one, or that of a run to resume.

The configurations of D-FINE name a folder, and `train.py` uses it as it is. `dfine train` uses a new one for
each run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..core.config_file import load_config_tree, parse_overrides
from ..core.errors import CheckpointError, ConfigError
from ..core.package_configs import configs_folder
from ..core.paths import did_you_mean_file, read_text, user_path
from ..detection.run_checkpoint import LAST
from ..runtime.distributed import broadcast_object, is_main
from ..runtime.files import LOCK, is_in_use
from ..runtime.log import logger
from ..runtime.own_files import is_ours
from ..runtime.process import STATUS_FILE
from .earlier_runs import CONFIG
from .output_folder import HEADERS

ROOT = "runs"
"""Folder of the folders of runs."""

_WITHOUT_RESULTS = {CONFIG, LOCK, STATUS_FILE, *HEADERS.values()}
"""What a run leaves behind that ended before its first result."""


def choose_folder(name: str, root: str | Path = ROOT) -> Path:
    """Create and return the folder of a new run.

    Each process gets a folder of its own, even if several start at the same time. A folder whose run failed
    before its first result is used again.

    Args:
        name: name of the run.
        root: folder of the folders of runs, created if it is missing.

    Returns:
        `root/name`, or `root/name2`, `root/name3` and so on.

    Raises:
        ConfigError: if the name is not the name of a folder, or the folder cannot be created.
    """
    if not name or name in (".", "..") or Path(name).name != name:
        raise ConfigError(
            f"the name of the run is {name!r}, expected the name of a folder in {root}; to choose another "
            "place, pass --output-dir"
        )
    number = 1
    while True:
        folder = Path(root) / (name if number == 1 else f"{name}{number}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
        except FileExistsError:
            if _failed_at_once(folder):
                return folder
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be created: {error.strerror or error}; pass another --output-dir"
            ) from None
        if not folder.parent.is_dir():
            raise ConfigError(
                f"{folder.parent} is not a folder; pass another --output-dir"
            )
        number += 1


@contextmanager
def new_folder(name: str) -> Iterator[Path]:
    """Yield the folder of a new run, the same on all ranks; remove it if nothing was written to it."""
    folder: Path = broadcast_object(choose_folder(name) if is_main() else None)
    logger.info("results will be in %s", folder)
    try:
        yield folder
    finally:
        with suppress(OSError):  # it has results
            folder.rmdir()


def folder_to_resume(resume: str | Path) -> Path:
    """Return the folder of the run to resume.

    Raises:
        CheckpointError: if there is no such run.
    """
    path = user_path(resume)
    if path.is_dir():
        path = path / LAST
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist, so there is no run to resume{did_you_mean_file(path)}"
        )
    if path.name != LAST:
        raise CheckpointError(
            f"{path} cannot be resumed; pass the folder of the run, or its {LAST}"
        )
    return path.parent


def has_own_folder(config: str | Path | None, update: Sequence[str]) -> bool:
    """Return whether the user has given `output_dir`, with `-u` or in a configuration of their own.

    The configurations of this project, and those that a run has written, do not count.

    Args:
        config: configuration file of the run, or None.
        update: settings of `-u`, as "key=value".

    Raises:
        ConfigError: if the configuration or a setting cannot be read.
    """
    if "output_dir" in parse_overrides(list(update)):
        return True
    if config is None:
        return False
    place = load_config_tree(config).origin(("output_dir",))
    path = Path(place.rpartition(":")[0])
    if not path.is_file() or is_ours(path):
        return False
    return not path.resolve().is_relative_to(configs_folder().resolve())


def _failed_at_once(folder: Path) -> bool:
    """Return whether the run of a folder has failed before its first result."""
    status = folder / STATUS_FILE
    if folder.is_symlink() or not folder.is_dir() or is_in_use(folder):
        return False
    if not is_ours(status):
        return False
    if not set(os.listdir(folder)) <= _WITHOUT_RESULTS:
        return False
    return json.loads(read_text(status)).get("status") == "failed"
