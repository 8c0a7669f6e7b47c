"""Where a model comes from: the code, the command, and whose licences its start weights stand under."""

from __future__ import annotations

import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.contracts import Licensed
from ..detection.weight_file import WeightFile

ROOT = Path(__file__).resolve().parents[2]


def provenance(model: nn.Module, start_file: WeightFile | None) -> dict[str, Any]:
    """Return what a checkpoint says about its making.

    Args:
        model: as it was built; parts that loaded published weights know their licence.
        start_file: the checkpoint that the run began from or goes on with, whose notes are handed on.

    Returns:
        `commit`, `command`, `torch`, `started` (UTC) and `licences`, one note for each origin of weights.
    """
    notes = [
        module.licence_note
        for module in model.modules()
        if isinstance(module, Licensed) and module.licence_note
    ]
    if start_file is not None:
        unknown = f"start weights {start_file.path.name}: the file names no licence, look where it came from"
        notes += start_file.meta.get(
            "licences", [unknown]
        )  # an empty list is an answer: trained from random weights
    return {
        "commit": code_version(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "torch": str(torch.__version__),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "licences": list(dict.fromkeys(notes)),
    }


def code_version(root: Path = ROOT) -> str:
    """Return the commit of the code, with "+changes" if files differ from it; "unknown" outside a git checkout."""

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return "unknown"
        return ask("rev-parse", "HEAD") + (
            "+changes" if ask("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
