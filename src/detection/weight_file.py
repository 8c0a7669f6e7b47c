"""A file with the weights of a whole detector, ours or D-FINE's own, and what it says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import CheckpointError, NumericsError
from ..core.yaml_config import YAMLConfig
from ..runtime.finite import first_non_finite
from ..runtime.weight_files import checked_path, read_tensor_file
from .class_names import named_classes


@dataclass(frozen=True)
class WeightFile:
    """Weights from a file of ours or of D-FINE's, with what it says about itself."""

    path: Path
    weights: dict[str, Tensor]
    meta: dict[str, Any]
    """`classes`, `config`, `score` ...; empty for a file of D-FINE's."""

    @property
    def classes(self) -> list[dict[str, Any]] | None:
        """Id and name of each label, or None if the file does not say."""
        return self.meta.get("classes")

    @cached_property
    def num_classes(self) -> int | None:
        """Number of classes that the decoder's class head has, or None if there is no class head."""
        return class_count(self.weights)

    @cached_property
    def named_classes(self) -> list[dict[str, Any]]:
        """Id and name for every row of the class head, also if the file does not say.

        `class_names.named_classes` says which names are given then.

        Raises:
            CheckpointError: if there is no class head.
        """
        if self.num_classes is None:
            raise CheckpointError(f"{self.path} is no D-FINE checkpoint: it has no class head")
        return named_classes(self.classes, self.num_classes)

    @property
    def config_text(self) -> str | None:
        """The configuration of the model as YAML text, or None if the file has none."""
        return self.meta.get("config") or None

    @property
    def threshold(self) -> Any:
        """Minimum score with the best F1 on the validation data, unchecked; None if the file does not say."""
        return self.meta.get("threshold")

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels that the model was evaluated at, or None if the file does not say."""
        size = self.meta.get("input_size")
        return (size[0], size[1]) if size else None

    def configuration(self, config: str | Path | None = None) -> YAMLConfig:
        """Return the configuration of the model, prepared for these weights (`prepare`).

        Args:
            config: a configuration file, for a file of weights that holds none.

        Raises:
            CheckpointError: if there is neither.
            ConfigError: for faults in the configuration.
        """
        if self.config_text is not None:
            cfg = YAMLConfig.from_text(self.config_text, f"the configuration in {self.path}")
        elif config is not None:
            cfg = YAMLConfig(config)
        else:
            raise CheckpointError(
                f"{self.path} holds no configuration, as files of D-FINE's own do; name the one it was "
                "trained with: "
                f"-c configs/dfine/...yml"
            )
        self.prepare(cfg)
        return cfg

    def prepare(self, cfg: YAMLConfig) -> None:
        """Set what follows from these weights, before `cfg.model` is built.

        Start weights of backbones are switched off, and the number of classes is set if the configuration
        leaves it open.
        """
        cfg.without_pretrained()
        if cfg.yaml_cfg.get("num_classes") is None and self.num_classes is not None:
            cfg.set("num_classes", self.num_classes, f"counted in {self.path}")


def read_weights(path: str | Path) -> WeightFile:
    """Read the weights to evaluate or start from: the EMA weights if there are any, else those of the model.

    Raises:
        CheckpointError: if the file is damaged or holds no weights.
        NumericsError: if a weight is not finite.
    """
    path = checked_path(path)
    content = read_tensor_file(path)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a checkpoint with 'model' or 'ema'"
        )
    ema = content.get("ema")
    weights = ema.get("module") if isinstance(ema, dict) else None
    weights = weights or content.get("model") or content
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(value, Tensor) for value in weights.values())
    ):
        raise CheckpointError(
            f"{path} has none of the keys 'model' and 'ema' that a checkpoint has; it has "
            f"{', '.join(map(str, list(content)[:8]))}"
        )
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    refuse_non_finite(path, weights)
    return WeightFile(path, weights, content.get("meta") or {})


def refuse_non_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Look for NaN and infinity in weights.

    Args:
        path: file that the weights come from, for messages.
        weights: tensors by name.

    Raises:
        NumericsError: with the first tensor that has one.
    """
    key = first_non_finite(weights)
    if key is not None:
        raise NumericsError(
            f"{path}: tensor {key} holds values that are not finite; these weights cannot be used"
        )


def class_count(weights: Mapping[str, Tensor]) -> int | None:
    """Return the number of rows of the decoder's class head, or None if there is no class head.

    Args:
        weights: state dict of a detector, or weights from a file.
    """
    for key, value in sorted(weights.items()):
        if key.startswith("decoder.dec_score_head.") and key.endswith(".bias"):
            return len(value)
    return None
