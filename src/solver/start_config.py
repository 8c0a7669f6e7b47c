"""Choose the configuration of a run that names a file to start from, but no configuration.

A file of this project contains the configuration of its run. The tensors of a published file show which model
it holds, and each model has configurations in this repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, ConfigError
from ..core.package_configs import package_config
from ..core.yaml_config import YAMLConfig
from ..core.yaml_text import dump_yaml, parse_yaml
from ..detection.model_config import require_recognized, use_classes_of
from ..detection.model_table import is_model_name
from ..detection.weight_file import WeightFile, read_weights
from ..runtime.log import logger
from ..runtime.weight_files import refuse_address
from .checkpoint import CheckpointFolder, NoStateError
from .start_weights import AUTO


def open_configuration(
    path: str | None, overrides: dict[str, Any]
) -> YAMLConfig:
    """Return the configuration of a run.

    Args:
        path: configuration file (`-c`); None takes the configuration of the file that the run starts from.
        overrides: settings of the command line, among them `resume`, `tuning`, `test_only` and `family`.

    Raises:
        ConfigError: for faults in the configuration, or if there is neither a configuration nor a file.
        CheckpointError: if the file cannot be read, or no configuration is known for it.
    """
    if path is not None:
        return YAMLConfig(path, **overrides)
    resume = overrides.get("resume")
    tuning = overrides.get("tuning")
    if resume == AUTO or (resume is None and tuning is None):
        raise ConfigError(
            "no configuration is given; -c is needed unless -r or -t names a file"
        )
    family = overrides.get("family")
    if resume is None:
        file = read_weights(str(tuning), family)
        return _own(file, overrides) or _for_tuning(file, overrides)
    if overrides.get("test_only"):
        file = read_weights(resume, family)
        return _own(file, overrides) or _for_evaluation(file, overrides)
    return _resumed(resume, overrides)


def _own(file: WeightFile, overrides: dict[str, Any]) -> YAMLConfig | None:
    """Return the configuration in a file of this project, or None for another file."""
    if file.config_text is None:
        return None
    text = _without_caches(file.config_text, file.path)
    return _from_text(file.path, text, overrides)


def _without_caches(text: str, path: Path) -> str:
    """Return a configuration without its image caches, whose folders may be those of another machine."""
    settings, _ = parse_yaml(text, f"the configuration in {path}")
    has_cache = False
    for content in settings.values():
        dataset = content.get("dataset") if isinstance(content, dict) else None
        if isinstance(dataset, dict) and dataset.get("image_cache"):
            has_cache = True
            del dataset["image_cache"]
            dataset.pop("image_cache_gb", None)
    return dump_yaml(settings) if has_cache else text


def _from_text(path: Path, text: str, overrides: dict[str, Any]) -> YAMLConfig:
    """Return the configuration of the run that wrote a file."""
    once = {"override": False, "overwrite": False, "test_only": False}
    try:
        cfg = YAMLConfig.from_run(
            text, f"the configuration in {path}", **(once | overrides)
        )
    except ConfigError as error:
        raise ConfigError(
            f"{error}; -c names another configuration file"
        ) from None
    logger.info("no -c was given: using the configuration in %s", path)
    return cfg


def _for_tuning(file: WeightFile, overrides: dict[str, Any]) -> YAMLConfig:
    """Return the configuration for a user's own data of a published model.

    The number of classes is read from the data, unless the command line sets it.
    """
    entry = require_recognized(file).entry
    if entry.custom_config is None:
        raise CheckpointError(
            f"{file.path} is {entry.title}, which has no configuration for own data; give one with -c"
        )
    settings = {"num_classes": None} | overrides
    return _of_table(file, entry.title, entry.custom_config, settings)


def _for_evaluation(file: WeightFile, overrides: dict[str, Any]) -> YAMLConfig:
    """Return the configuration with which a published model was trained, with the classes of the file."""
    entry = require_recognized(file).entry
    cfg = _of_table(file, entry.title, entry.config, overrides)
    use_classes_of(file, cfg)
    return cfg


def _of_table(
    file: WeightFile, title: str, config: str, overrides: dict[str, Any]
) -> YAMLConfig:
    cfg = YAMLConfig(_shown(package_config(config)), **overrides)
    logger.info(
        "no -c was given: %s is %s, using %s", file.path, title, cfg.path
    )
    return cfg


def _shown(path: Path) -> Path:
    """Return a path from the current folder if that is shorter."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _resumed(resume: str, overrides: dict[str, Any]) -> YAMLConfig:
    """Return the configuration of the run to resume."""
    if is_model_name(resume):
        raise CheckpointError(
            f"{resume} is a published model, which has no training state to resume; add --test-only to "
            "evaluate it, or start a new run from it with -t"
        )
    path = Path(refuse_address(resume)).expanduser()
    try:
        state, found = CheckpointFolder(path.parent).load_last(path)
    except NoStateError as error:
        raise CheckpointError(
            f"{error}, or evaluate them with --test-only"
        ) from None
    return _from_text(found, state["meta"]["config"], overrides)
