"""Record the origin of a model: code version, command, and the licences of its start weights."""

from __future__ import annotations

import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..core.contracts import Licensed
from ..detection.weight_file import WeightFile

ROOT = Path(__file__).resolve().parents[2]


def provenance(
    model: nn.Module, start_file: WeightFile | None
) -> dict[str, Any]:
    """Return the provenance that a checkpoint stores.

    Args:
        model: newly built model; parts that loaded published weights have a licence note.
        start_file: checkpoint that the run starts from or resumes; its licence notes are copied.

    Returns:
        `commit`, `command`, `torch`, `started` (UTC) and `licences`, one note for each origin of weights.
    """
    notes: list[str] = []
    for module in model.modules():
        if isinstance(module, Licensed) and module.licence_note:
            notes.append(module.licence_note)
    if start_file is not None:
        unknown = f"start weights {start_file.path.name}: the file states no licence; check its source"
        # An empty list is valid: the file was trained from random weights.
        notes += start_file.meta.get("licences", [unknown])
    return {
        "commit": code_version(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "torch": str(torch.__version__),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "licences": list(dict.fromkeys(notes)),
    }


def code_version(root: Path = ROOT) -> str:
    """Return the git commit, with "+changes" if files are modified; the version outside a checkout."""
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != root.resolve():
            return f"version {__version__}"
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return f"version {__version__}"
    return f"{commit}+changes" if changes else commit


def _git(root: Path, *arguments: str) -> str:
    """Run git in a folder and return what it prints."""
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
