"""The values of a reproduction: model, devices, settings and folder, chosen from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...core.errors import ConfigError
from ...core.package_configs import package_config
from ...core.paths import close_names
from ...detection.model_table import Entry, read_table
from .defaults import DEFAULT_MODEL

ROOT = Path("runs/coco")
"""Folder of the results of all models."""

RUN = "run"
"""Folder of the training, in that of the results."""


@dataclass(frozen=True)
class Job:
    """One reproduction."""

    entry: Entry
    updates: tuple[str, ...]
    """Settings that differ from the configuration of the model, as for `-u`."""
    folder: Path
    """Folder of all results."""
    changes: tuple[str, ...] = ()
    """Those settings with which the user changes the recipe."""
    processes: int = 1
    device: str | None = None
    """Device as for `train.py`; None is the GPU of each process."""
    seed: int = 0
    quick: bool = False
    """Leave out slow checks."""

    @property
    def config(self) -> Path:
        """Configuration file of the model."""
        return package_config(self.entry.config)

    @property
    def run_folder(self) -> Path:
        """Folder of the training."""
        return self.folder / RUN


def find_model(name: str) -> Entry:
    """Return a model of `configs/models.yml` that is trained on COCO.

    Raises:
        ConfigError: if there is no such model, with similar names, or if it has the classes of Objects365.
    """
    table = read_table()
    for_coco = [key for key in table if not table[key].is_for_objects365]
    if name not in table:
        close = close_names(name, for_coco)
        hint = (
            f"did you mean {', '.join(close)}?"
            if close
            else f"pass one of its names, such as {DEFAULT_MODEL}"
        )
        raise ConfigError(
            f"{name} is not a model of configs/models.yml; {hint}"
        )
    entry = table[name]
    if entry.is_for_objects365:
        raise ConfigError(
            f"{name} is trained on Objects365, and this command evaluates on COCO; pass a model whose name "
            "ends in _coco or _obj2coco"
        )
    return entry


def choose_processes(
    gpus: int | None, device: str | None, *, available: int
) -> int:
    """Return the number of training processes.

    Args:
        gpus: value of `--gpus`; None takes all GPUs, or one process on a CPU.
        device: value of `--device`.
        available: number of GPUs that torch finds.

    Raises:
        ConfigError: if there are not so many GPUs, or no GPU and no `-d cpu`.
    """
    if gpus is not None and gpus < 1:
        raise ConfigError(f"--gpus is {gpus}, expected at least 1")
    if device == "cpu":
        return gpus or 1
    if available == 0:
        raise ConfigError(
            "torch finds no GPU, and one epoch of COCO takes days on a CPU; run this command on a machine "
            "with GPUs (tools/doctor.py describes this one), or pass -d cpu to use the CPU"
        )
    if device is not None and device.startswith("cuda:"):
        if gpus is not None and gpus > 1:
            raise ConfigError(
                f"--device {device} is one GPU, but --gpus is {gpus}; pass one of the two"
            )
        return 1
    if gpus is not None and gpus > available:
        raise ConfigError(
            f"--gpus is {gpus}, but torch finds {available}; pass at most {available}"
        )
    return gpus or available


def default_folder(model: str, epochs: int | None) -> Path:
    """Return the folder of the results; a shortened training has its own.

    Example:
        >>> str(default_folder("dfine_n_coco", 1))
        'runs/coco/dfine_n_coco_epochs1'
    """
    name = model if epochs is None else f"{model}_epochs{epochs}"
    return ROOT / name


def settings_for(
    entry: Entry,
    data: list[str],
    user: list[str],
    *,
    epochs: int | None,
    amp: bool,
) -> tuple[str, ...]:
    """Return all settings as for `-u`; later ones win, so those of the user are last.

    A model that starts from another model of the table, such as one of Objects365, gets it as `tuning`.

    Args:
        entry: model.
        data: settings of the data set.
        user: settings of the user.
        epochs: length of the training; None keeps that of the recipe.
        amp: use mixed precision.
    """
    settings = [*data]
    if entry.start_weights in read_table():
        settings.append(f"tuning={entry.start_weights}")
    if epochs is not None:
        settings.append(f"epochs={epochs}")
    if amp:
        settings.append("use_amp=True")
    return (*settings, *user)


def is_place(setting: str) -> bool:
    """Return whether a setting of `-u` names a file or folder of data, which depends on the machine."""
    key = setting.partition("=")[0]
    return key.rpartition(".")[2] in ("img_folder", "ann_file")
