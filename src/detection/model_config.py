"""The configuration of the model in a checkpoint, which is compared with its weights before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core.build import create
from ..core.coco_categories import COCO_NAMES
from ..core.errors import CheckpointError, ConfigError
from ..core.package_configs import package_config
from ..core.registry import find
from ..core.schemas import shown
from ..core.yaml_config import MODEL_ROLES, YAMLConfig
from ..runtime.finite import COMPUTED_KEYS
from ..runtime.log import logger
from ..runtime.quick_imports import without_compiler
from .fitting import completed, describe_misfits
from .published.recognition import Recognized, shown_activation
from .weight_file import WeightFile, decoder_activation

LARGEST_NUMBER = 16_384
"""Maximum of an integer in the settings of a model, unless a tensor of the file has a longer side."""

OPERATIONS_PER_TENSOR = 12
EXTRA_OPERATIONS = 2_000
"""Operations on tensors that building a model may take, for each tensor of its file and besides."""


def model_config(
    file: WeightFile, config: str | Path | None = None
) -> YAMLConfig:
    """Return the configuration of the model of a checkpoint, prepared for its weights.

    The configuration inside a checkpoint only describes a model (`YAMLConfig.from_text`). A published file
    has none: it gets the configuration of the model that its tensors show.

    Args:
        file: the checkpoint.
        config: a configuration file, for checkpoints without a configuration.

    Raises:
        CheckpointError: if neither the file nor `config` provides a configuration and the file is not
            recognized, or if the configuration in the file has faults or describes another model.
        ConfigError: for faults in the file `config`.
    """
    if file.config_text is None:
        if config is None:
            return published_config(file)
        cfg = YAMLConfig(config)
        file.prepare(cfg)
        return cfg
    try:
        cfg = YAMLConfig.from_text(
            file.config_text, f"the configuration in {file.path}"
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    file.prepare(cfg)
    check_sizes(file, cfg)
    return cfg


def published_config(file: WeightFile) -> YAMLConfig:
    """Return the configuration of the model of the table that a file holds, with the file's classes.

    Raises:
        CheckpointError: if the file is not recognized.
    """
    found = require_recognized(file)
    cfg = YAMLConfig(package_config(found.entry.config))
    file.prepare(cfg)
    use_classes_of(file, cfg)
    return cfg


def use_classes_of(file: WeightFile, cfg: YAMLConfig) -> None:
    """Set the number of classes of a configuration to that of a file.

    Args:
        file: the file.
        cfg: a configuration for COCO or Objects365, which may have another number.
    """
    count = file.num_classes
    if cfg.yaml_cfg.get("num_classes") != count:
        cfg.set("num_classes", count, f"counted in {file.path}")
    if count != len(COCO_NAMES):
        cfg.set("remap_mscoco_category", False, f"{count} classes")


def require_recognized(file: WeightFile) -> Recognized:
    """Return the model of the table that a file holds; a choice that its tensors did not make is logged.

    Raises:
        CheckpointError: with a description of the file, if it is not recognized.
    """
    found = file.recognized
    if found is None and file.num_classes is None:
        raise CheckpointError(
            f"{file.path} is not a detector's checkpoint: {file.describe_unknown()}"
        )
    if found is None:
        raise CheckpointError(
            f"{file.path} contains no configuration, and its tensors are not those of a published model: "
            f"{file.describe_unknown()}; give the configuration that it was trained with: "
            "-c configs/dfine/...yml"
        )
    if found.warning is not None:
        logger.warning("%s: %s", file.path, found.warning)
    return found


def refuse_other_family(file: WeightFile, cfg: YAMLConfig) -> None:
    """Check that a configuration has the activation of the family that a file is known to be of.

    Raises:
        CheckpointError: with both names, because boxes would be wrong without a message.
    """
    difference = other_family(file, cfg)
    if difference is not None:
        raise CheckpointError(
            f"{difference}; leave -c out, or give the configuration of its family"
        )


def other_family(file: WeightFile, cfg: YAMLConfig) -> str | None:
    """Return how the family of a file differs from that of a configuration, or None if they agree.

    The configuration in a file decides about it, if it has one. A file that fits several families, of which
    nothing decides, agrees with each.
    """
    found = file.recognized
    if file.config_text is not None:
        theirs = file.noted_activation
        name = "the model of its own configuration"
    elif found is None or found.is_undecided:
        return None
    else:
        theirs = found.entry.activation
        name = f"{found.entry.title} according to {found.decided_by}"
    ours = decoder_activation(cfg.yaml_cfg)
    if theirs is None or theirs == ours:
        return None
    return (
        f"{file.path} is {name}, with {shown_activation(theirs)} in the decoder, but {cfg.path} describes "
        f"a decoder with {shown_activation(ours)}"
    )


def check_sizes(file: WeightFile, cfg: YAMLConfig) -> None:
    """Check that the model of a checkpoint's own configuration has the tensors of the file.

    The model is built without memory for its tensors (torch's device "meta"), and within limits for the
    number of its parts, so that a configuration cannot exhaust memory or time.

    Args:
        file: weights of the checkpoint.
        cfg: configuration in the checkpoint, after `WeightFile.prepare`.

    Raises:
        CheckpointError: if a setting is too large for the file, or names or shapes of tensors differ.
    """
    place = f"the configuration in {file.path}"
    _refuse_large_numbers(cfg.yaml_cfg, file.weights, place)
    try:
        limits = _LimitedBuilding(len(file.weights), place)
        with without_compiler(), limits, torch.device("meta"):
            model, _ = (
                create(cfg.yaml_cfg[role], cfg.resolved_cfg, load_files=False)
                for role in MODEL_ROLES
            )
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{place} cannot be used: {error}") from None
    own = model.state_dict()
    weights = completed(file.weights, model)
    for key in COMPUTED_KEYS:
        if key in own and key in file.weights:
            weights[key] = file.weights[key]
    misfits = describe_misfits(weights, own)
    if misfits:
        raise CheckpointError(
            f"{file.path} does not fit its own configuration: {misfits}"
        )


def _refuse_large_numbers(
    settings: Mapping[str, Any], weights: Mapping[str, Tensor], place: str
) -> None:
    """Check that no integer in the settings of components is larger than all sides of the tensors."""
    limit = LARGEST_NUMBER
    for tensor in weights.values():
        limit = max(limit, *tensor.shape, 0)
    for name, value in settings.items():
        if name in _SIZES or find(name) is not None:
            for number in _integers_in(value):
                if abs(number) > limit:
                    raise CheckpointError(
                        f"{place}: {name} contains {shown(number)}, but no side of a tensor in the file is "
                        f"longer than {limit}; the file was changed"
                    )


_SIZES = ("num_classes", "eval_spatial_size")
"""Top-level settings that the parts of a model share."""


def _integers_in(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _integers_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _integers_in(item)


class _LimitedBuilding(TorchFunctionMode):
    """Raise an error when building a model takes more operations on tensors than its file has weights for.

    Creating, initializing and copying a tensor are such operations.
    """

    def __init__(self, tensors: int, place: str) -> None:
        """Set the limit.

        Args:
            tensors: number of tensors in the file.
            place: source of the settings, for messages.
        """
        super().__init__()
        self.tensors = tensors
        self.place = place
        self.left = OPERATIONS_PER_TENSOR * tensors + EXTRA_OPERATIONS

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Count an operation and do it."""
        self.left -= 1
        if self.left < 0:
            raise CheckpointError(
                f"{self.place} describes a model with far more parts than the {self.tensors} tensors in "
                "the file; the file was changed"
            )
        return func(*args, **(kwargs or {}))
