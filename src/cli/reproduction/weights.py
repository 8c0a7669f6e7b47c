"""The weights that a training starts from: whether their files exist, and whether they are the right ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import CheckpointError
from ...core.yaml_config import YAMLConfig
from ...detection.model_table import find_weights, is_model_name
from ...detection.run_checkpoint import BEST
from ...detection.weight_file import read_weights
from ...runtime.log import say
from ...runtime.weight_files import file_sha256

_BLOCKS = ("distillation", "gram_anchoring")
"""Parts of a configuration that load weights of their own."""


class StartFile(NamedTuple):
    """A weight file that a configuration names."""

    setting: str
    """Setting that names it, for `-u`."""
    path: Path


def start_files(cfg: YAMLConfig) -> list[StartFile]:
    """Return the files that a training needs, which may be missing.

    The ImageNet weights of HGNetv2 are not among them: the trainer finds or downloads them.

    Raises:
        CheckpointError: if a published detector is named whose file is missing or damaged.
    """
    files = []
    tuning = cfg.settings.tuning
    if tuning is not None:
        files.append(StartFile("tuning", _detector(tuning)))
    for setting, section in _sections(cfg):
        path = section.get("checkpoint_path")
        if setting == _backbone(cfg) and tuning is not None:
            continue  # the checkpoint fills the whole model
        if path and section.get("pretrained", True):
            name = f"{setting}.checkpoint_path"
            files.append(StartFile(name, Path(path).expanduser()))
        if section.get("type") == "DetectorDistillation":
            teacher = str(section.get("teacher"))
            files.append(StartFile(f"{setting}.teacher", _detector(teacher)))
    return files


def _detector(name: str) -> Path:
    """Return the file of a detector: a name of the table, a run folder or a path."""
    if is_model_name(name):
        return find_weights(name)
    path = Path(name).expanduser()
    if (path / BEST).is_file():
        return path / BEST
    return path


def _backbone(cfg: YAMLConfig) -> str:
    """Return the name of the backbone's class, which is also that of its settings."""
    model = cfg.yaml_cfg.get("model") or "DFINE"
    section = cfg.yaml_cfg.get(model) or {}
    return str(section.get("backbone"))


def _sections(cfg: YAMLConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the settings of the backbone and of what loads weights beside it, with their names."""
    for name in (_backbone(cfg), *_BLOCKS):
        section = cfg.yaml_cfg.get(name)
        if isinstance(section, dict):
            yield name, section


def refuse_missing_weights(files: list[StartFile]) -> None:
    """Check that all files exist.

    Raises:
        CheckpointError: with the first file that is missing, and what to do.
    """
    for setting, path in files:
        if not path.exists():
            raise CheckpointError(
                f"the start weights {path} do not exist; weights/README.md says where to get them; put the "
                f"file there, or name another with -u {setting}=FILE"
            )


def check_weights(cfg: YAMLConfig, files: list[StartFile]) -> dict[str, str]:
    """Load the start weights as the training does, which verifies digests, and return the digests.

    Args:
        cfg: configuration of the training.
        files: its files (`start_files`).

    Returns:
        SHA-256 digests by path.

    Raises:
        CheckpointError: if a file is damaged or belongs to another model.
    """
    if cfg.settings.tuning is not None:
        read_weights(cfg.settings.tuning, cfg.settings.family)
        cfg.without_pretrained()
    model = cfg.model
    parameters = sum(tensor.numel() for tensor in model.parameters())
    digests = {str(path): file_sha256(path) for _, path in files}
    for path, digest in digests.items():
        say(f"{path}: sha256 {digest}")
    if not digests:
        say("no file is named: the log lines above say where weights come from")
    say(f"the model has {parameters / 1e6:.2f} M parameters")
    return digests


def identity_of(files: list[StartFile]) -> dict[str, Any]:
    """Return what changes if another file is put in the place of one, as values for JSON."""
    identity = {}
    for setting, path in files:
        entry = path.stat()
        identity[setting] = [str(path), entry.st_size, entry.st_mtime_ns]
    return identity
