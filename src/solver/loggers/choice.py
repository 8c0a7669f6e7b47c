"""Choose the loggers of a run, and refuse those whose package is not installed before training starts."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.errors import ConfigError
from ...core.yaml_config import RunSettings
from ...runtime.optional import IS_IN_TREE, is_installed

SERVICES = {
    "wandb": "Weights & Biases",
    "mlflow": "MLflow",
    "clearml": "ClearML",
}
"""Names of the services by their word, which is also the name of the package to import."""


def chosen_loggers(settings: RunSettings) -> list[str]:
    """Return the words of the loggers of a run, each once; `use_wandb` is another way to write "wandb".

    Example:
        >>> chosen_loggers(RunSettings(loggers=["csv", "mlflow"], use_wandb=True))
        ['csv', 'mlflow', 'wandb']
    """
    words = [*settings.loggers]
    if settings.use_wandb:
        words.append("wandb")
    return list(dict.fromkeys(words))


def require_packages(words: Sequence[str]) -> None:
    """Check that the packages of loggers are installed. They are not imported.

    Raises:
        ConfigError: if one is missing; the message has the command that installs it.
    """
    for word in words:
        if word in SERVICES and not is_installed(word):
            raise ConfigError(
                f"the logger {word} is on (--log, loggers or use_wandb), but the package {word} is not "
                f"installed: {install_command(word)}; or leave the logger out"
            )


def install_command(word: str) -> str:
    """Return the command that installs the package of a logger."""
    if IS_IN_TREE:
        return f"pip install {word}"
    return f'pip install "dfine-dinov3[{word}]"'


def run_name(settings: RunSettings) -> str:
    """Return the name of a run in a service: `exp_name`, or the name of the output folder.

    "baseline" is the `exp_name` of all configurations of this project, which tells runs not apart.
    """
    from pathlib import Path

    if settings.exp_name != "baseline":
        return settings.exp_name
    return Path(settings.output_dir).resolve().name
