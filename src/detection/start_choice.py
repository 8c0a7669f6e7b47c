"""Choose what a training on own data starts from: a model's configuration, and weights that are available.

Detectors are looked for in `weights/` under their names in `configs/models.yml`. Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import CheckpointError, ConfigError
from ..core.package_configs import configs_by_name, find_config, package_config
from ..core.paths import close_names
from ..core.yaml_config import YAMLConfig
from .model_table import WEIGHTS_FOLDER, Entry, read_table, weights_file
from .run_checkpoint import checkpoint_of

DEFAULT_SIZE = "s"

FAMILIES_BY_PREFERENCE = ("dfine_dinov3", "deimv2", "dfine", "deim", "rtv4")
"""Order in which families are tried for a size: DINOv3 backbones first."""

_DATA_BY_PREFERENCE = ("obj2coco", "obj365", "coco")
"""Order in which the weights of a model are tried: those that have seen more data first."""

SCRATCH = {
    "tiny": "dfine_dinov3_tiny_scratch",
    "scratch": "dfine_hgnetv2_n_scratch",
}
"""Short names of configurations that start from random weights."""


class StartChoice(NamedTuple):
    """Start of a training."""

    config: Path | None
    """Configuration file; None takes the configuration in the file of `weights`."""
    weights: str | None
    """File, or name in `configs/models.yml`, of a detector to fine-tune, or None."""
    reason: str
    """Sentence for the log."""


def choose_start(
    model: str | None = None, folder: Path = WEIGHTS_FOLDER
) -> StartChoice:
    """Choose the configuration and the start weights of a training on own data.

    Args:
        model: a size ("n", "s", "s2", "t", "m", "l", "x", "atto", "femto", "pico"), "tiny" or "scratch", a
            name of `configs/models.yml`, a configuration by name or path, a checkpoint or a run folder. None
            means size S.
        folder: folder of weight files.

    Raises:
        ConfigError: if the model is unknown.
        CheckpointError: if the model does not start from random weights and no weights for it are available.
    """
    name = DEFAULT_SIZE if model is None else model
    if name in SCRATCH:
        return _of_config(find_config(SCRATCH[name]), folder)
    sizes = {entry.size for entry in read_table().values()}
    if name.lower() in sizes:
        return _of_size(name.lower(), folder)
    if name in read_table():
        return _of_entry(read_table()[name], folder)
    path = Path(name).expanduser()
    if path.suffix not in (".yml", ".yaml") and path.exists():
        file = str(checkpoint_of(name))
        return StartChoice(None, file, f"the training starts from {file}")
    if path.suffix in (".yml", ".yaml") or name in configs_by_name():
        return _of_config(find_config(name), folder)
    raise ConfigError(_unknown(name, sizes))


def _of_size(size: str, folder: Path) -> StartChoice:
    """Return the start of a size: the first detector that is available, or a pre-trained backbone."""
    entries = _by_preference(
        entry
        for entry in read_table().values()
        if entry.size == size and entry.custom_config is not None
    )
    for entry in entries:
        if weights_file(entry, folder) is not None:
            return _from_detector(entry)
    configs = [package_config(str(entry.custom_config)) for entry in entries]
    for config in configs:
        if _backbone_of(config).is_pretrained:
            return _from_backbone(config, entries, folder)
    raise CheckpointError(_nothing(entries, folder))


def _of_entry(entry: Entry, folder: Path) -> StartChoice:
    """Return the start of a model of the table."""
    if weights_file(entry, folder) is not None:
        return _from_detector(entry)
    config = entry.custom_config or entry.config
    return _from_backbone(package_config(config), [entry], folder)


def _of_config(config: Path, folder: Path) -> StartChoice:
    """Return the start of a configuration; the detectors that fit it are those that name it in the table."""
    entries = _by_preference(
        entry
        for entry in read_table().values()
        if entry.custom_config is not None
        and package_config(entry.custom_config) == config
    )
    for entry in entries:
        if weights_file(entry, folder) is not None:
            return _from_detector(entry, config)
    return _from_backbone(config, entries, folder)


def _by_preference(entries: Any) -> list[Entry]:
    def rank(entry: Entry) -> tuple[int, int]:
        data = entry.name.rpartition("_")[2]
        return (
            FAMILIES_BY_PREFERENCE.index(entry.family),
            _DATA_BY_PREFERENCE.index(data),
        )

    return sorted(entries, key=rank)


def _from_detector(entry: Entry, config: Path | None = None) -> StartChoice:
    if config is None:
        config = package_config(entry.custom_config or entry.config)
    reason = f"the training starts from {entry.title} ({entry.name}), with {config.stem}"
    return StartChoice(config, entry.name, reason)


class _Backbone(NamedTuple):
    """Start weights of the backbone of a configuration."""

    name: str
    is_pretrained: bool
    file: Path | None


def _backbone_of(config: Path) -> _Backbone:
    settings = YAMLConfig(config).yaml_cfg
    name = settings.get(settings.get("model", "DFINE"), {}).get("backbone")
    backbone = settings.get(name, {})
    file = backbone.get("checkpoint_path")
    return _Backbone(
        str(name),
        bool(backbone.get("pretrained", True)),
        Path(file).expanduser() if file else None,
    )


def _from_backbone(
    config: Path, entries: list[Entry], folder: Path
) -> StartChoice:
    """Return the start from a pre-trained backbone, or from random weights if it has no weights.

    Raises:
        CheckpointError: if the DINOv3 file of the configuration does not exist, or the configuration is one
            for fine-tuning a published detector, which is not available.
    """
    backbone = _backbone_of(config)
    if not backbone.is_pretrained and entries:
        raise CheckpointError(_nothing(entries, folder))
    if not backbone.is_pretrained:
        reason = f"the training starts from random weights, with {config.stem}"
        return StartChoice(config, None, reason)
    if backbone.name == "DINOv3Backbone":
        if backbone.file is None or not backbone.file.exists():
            raise CheckpointError(_nothing(entries, folder, backbone.file))
        source = f"DINOv3 ({backbone.file})"
    else:
        source = f"the ImageNet weights of {backbone.name}"
    reason = f"the training starts from {source}, with {config.stem}: no detector that fits is in {folder}/"
    return StartChoice(config, None, reason)


def _nothing(
    entries: list[Entry], folder: Path, backbone: Path | None = None
) -> str:
    """Return the message about a training that has nothing to start from."""
    names = ", ".join(entry.name for entry in entries[:3]) or "none is known"
    file = f" nor the DINOv3 file {backbone.name}" if backbone else ""
    contains = "contains neither" if backbone else "does not contain"
    return (
        f"nothing to start from: {folder}/ {contains} a detector that fits ({names}){file}; put one there "
        "(`dfine models show NAME` prints its source), or train from scratch with --model "
        "dfine_hgnetv2_n_scratch or --model dfine_dinov3_tiny_scratch"
    )


def _unknown(name: str, sizes: set[str]) -> str:
    known = {*sizes, *SCRATCH, *read_table(), *configs_by_name()}
    close = close_names(name, known)
    hint = (
        f"did you mean {', '.join(close)}?"
        if close
        else "`dfine models` lists the models; sizes such as s, .yml files, checkpoints and run folders are "
        "accepted too"
    )
    return f"--model {name} is not known; {hint}"
