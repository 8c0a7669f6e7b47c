"""The commands that follow a training: evaluate, predict, export. They work when they are copied."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ..core.yaml_config import YAMLConfig
from ..runtime.log import logger
from .checkpoint import BEST

PROGRAMS = ("dfine", "dfine-dinov3")
"""Names of the command with short subcommands."""


def next_commands(
    folder: Path, images: str | None, program: Sequence[str]
) -> list[str]:
    """Return the commands that evaluate, use and export the best checkpoint of a run.

    Example:
        >>> for line in next_commands(Path("runs/my cats"), "val", ["dfine"]):
        ...     print(line)
        dfine val 'runs/my cats'
        dfine predict 'runs/my cats' val
        dfine export 'runs/my cats'

    Args:
        folder: folder of the run.
        images: folder of images to predict; None writes a placeholder that the user replaces.
        program: words that start the command `dfine`, or the interpreter and `train.py` (`running_program`).
    """
    source = images or "IMAGES"
    if not program[-1].endswith(".py"):
        return [
            shlex.join([*program, "val", str(folder)]),
            shlex.join([*program, "predict", str(folder), source]),
            shlex.join([*program, "export", str(folder)]),
        ]
    python, script = program
    tools = Path(script).parent / "tools"
    best = str(folder / BEST)
    predict = str(tools / "inference" / "torch_inf.py")
    export = str(tools / "deployment" / "export_onnx.py")
    return [
        shlex.join([python, script, "-r", best, "--test-only"]),
        shlex.join([python, predict, "-r", best, "-i", source]),
        shlex.join([python, export, "-r", best]),
    ]


def running_program(
    argv: Sequence[str] | None = None, executable: str | None = None
) -> list[str]:
    """Return the words that start this project's command again.

    These are the interpreter and `train.py` if that is running in a copy of the repository. Otherwise it is
    the command `dfine`, or the package as a module if the command is not on the search path.

    Args:
        argv: arguments of the process; None uses those of this process.
        executable: interpreter; None uses that of this process.
    """
    script = (sys.argv if argv is None else argv)[0]
    executable = executable or sys.executable
    in_repository = (Path(script).parent / "tools" / "inference").is_dir()
    if in_repository and script.endswith(".py"):
        return [python_command(executable), script]
    started = os.path.basename(script)
    for name in dict.fromkeys([started, *PROGRAMS]):
        if name in PROGRAMS and _is_of_environment(name, executable):
            return [name]
    package = __name__.partition(".")[0]
    return [python_command(executable), "-m", package]


def _is_of_environment(name: str, executable: str) -> bool:
    """Return whether a command is found beside the interpreter, so that it is not another package's."""
    found = shutil.which(name)
    return found is not None and Path(found).parent == Path(executable).parent


DFINE_GPUS = "DFINE_GPUS"
"""Environment variable in which the processes of `dfine train --gpus N` find N."""


def is_command(script: str) -> bool:
    """Return whether a program, the first argument of a process, is `dfine` or `python -m dfine_dinov3`."""
    path = Path(script)
    if path.name in PROGRAMS:
        return True
    package = Path(__file__).resolve().parents[1]
    return path.name == "__main__.py" and path.resolve().parent == package


def python_command(executable: str) -> str:
    """Return the shortest name that starts an interpreter."""
    for name in ("python", "python3"):
        if shutil.which(name) == executable:
            return name
    return executable


def log_next_commands(cfg: YAMLConfig, folder: Path) -> None:
    """Log the next commands after a run.

    Args:
        cfg: configuration of the run, whose validation images are predicted.
        folder: folder of the run.
    """
    loader = cfg.yaml_cfg.get("val_dataloader") or {}
    dataset = loader.get("dataset")
    images = dataset.get("img_folder") if isinstance(dataset, dict) else None
    logger.info("results are in %s; next:", folder)
    titles = ("evaluate", "predict", "export")
    commands = next_commands(folder, images, running_program())
    for title, command in zip(titles, commands):
        logger.info("  %-9s %s", title, command)
