"""Files with the weights and metadata of a whole detector, from this project or published by others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.counts import counted
from ..core.errors import CheckpointError, ConfigError, NumericsError
from ..core.paths import read_text
from ..core.schemas import checked, shown
from ..core.yaml_config import YAMLConfig
from ..core.yaml_text import parse_yaml
from ..runtime.finite import first_non_finite
from ..runtime.weight_files import (
    checked_path,
    read_tensor_file,
    refuse_address,
    safetensors_texts,
)
from .class_names import named_classes
from .model_table import find_weights, is_model_name
from .notes import ADVICE, checked_notes
from .published.foreign import describe_foreign, describe_unknown_detector
from .published.layouts import DFINE, TRANSFORMERS, Converted, convert
from .published.recognition import FAMILIES, Recognized, recognize
from .run_checkpoint import checkpoint_of
from .transformers_folder import classes_beside

SHARED_NOTES = "dfine_dinov3"
"""Entry in the header of a safetensors file that holds the notes of a checkpoint as JSON."""


@dataclass(frozen=True)
class WeightFile:
    """Weights and metadata from a file of this project or of another one."""

    path: Path
    weights: dict[str, Tensor]
    """Tensors with the keys of this project's models."""
    meta: dict[str, Any]
    """`classes`, `config`, `score` ...; empty for a published file."""
    layout: str = DFINE
    """Layout of the keys in the file, as `published.layouts` names it."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Reason for each tensor of the file that `weights` leaves out, by its key in the file."""
    total: int | None = None
    """Number of tensors in the file; None if `weights` are all of them."""
    family: str | None = None
    """Family that the user gives (`--family`)."""
    model: str | None = None
    """Name in the table by which the user asked for the file, or None for a path."""

    @cached_property
    def recognized(self) -> Recognized | None:
        """The model of the table that the file holds, or None if its tensors are not known.

        Raises:
            CheckpointError: if `family` or `model` contradicts the file.
        """
        return recognize(
            self.path,
            Converted(self.layout, self.weights, dict(self.dropped)),
            num_classes=self.num_classes,
            noted=self._noted_family,
            family=self.family,
            model=self.model,
        )

    @cached_property
    def noted_activation(self) -> str | None:
        """Activation of the decoder according to the configuration in the file or beside it, or None."""
        if self.config_text is not None:
            try:
                settings, _ = parse_yaml(self.config_text, str(self.path))
            except ConfigError:
                return None  # reported when the configuration is used
            return decoder_activation(settings)
        if self.layout == TRANSFORMERS:
            return self._activation_of_transformers()
        return None

    def _activation_of_transformers(self) -> str | None:
        """Return the activation in the `config.json` beside a file of transformers, or None.

        Raises:
            CheckpointError: for SiLU, which transformers has only in the feed-forward parts.
        """
        activation = _activation_in(self.path.with_name("config.json"))
        if activation not in (None, "relu"):
            raise CheckpointError(
                f"{self.path}: the config.json beside it sets decoder_activation_function to '{activation}', "
                "which transformers uses in the feed-forward parts but not in the heads; no model here has "
                "this mixture, expected relu"
            )
        return activation

    @property
    def _noted_family(self) -> str | None:
        """Family that the notes of the file name, or that has its activation."""
        if "family" in self.meta:
            return self.meta["family"]
        families = {"relu": ["dfine"], "silu": ["deim", "rtv4"]}
        fitting = families.get(self.noted_activation or "", [])
        if self.family in fitting:
            return self.family
        return fitting[0] if fitting else None

    def describe_unknown(self) -> str:
        """Return what a file that is not recognized holds, for messages."""
        if self.num_classes is None:
            return f"it is {describe_foreign(self.weights)}"
        return describe_unknown_detector(self.weights)

    @property
    def classes(self) -> list[dict[str, Any]] | None:
        """Id and name of each label, or None if the file does not contain them."""
        return self.meta.get("classes")

    @cached_property
    def num_classes(self) -> int | None:
        """Number of classes that the decoder's class head has, or None if there is no class head."""
        return class_count(self.weights)

    @cached_property
    def named_classes(self) -> list[dict[str, Any]]:
        """Id and name for every row of the class head, even if the file does not contain them.

        See `class_names.named_classes` for the names in this case.

        Raises:
            CheckpointError: if there is no class head.
        """
        self.require_class_head()
        assert self.num_classes is not None
        if self.classes is not None and len(self.classes) > self.num_classes:
            raise CheckpointError(
                f"{self.path}: meta.classes lists {counted(len(self.classes), 'class', 'classes')}, but "
                f"the class head has {self.num_classes}; {ADVICE}"
            )
        return named_classes(self.classes, self.num_classes)

    def require_class_head(self) -> None:
        """Check that the file holds a detector.

        Raises:
            CheckpointError: with a description of the file, if there is no class head.
        """
        if self.num_classes is None:
            raise CheckpointError(
                f"{self.path} is not a D-FINE checkpoint: no class head found; {self.describe_unknown()}"
            )

    @property
    def config_text(self) -> str | None:
        """The configuration of the model as YAML text, or None if the file has none."""
        return self.meta.get("config") or None

    @property
    def threshold(self) -> Any:
        """Score threshold with the best F1 on the validation data, unchecked; None if not in the file."""
        return self.meta.get("threshold")

    @property
    def bit_depth(self) -> int | None:
        """Bits that the samples of 16-bit images use; None means 16."""
        return self.meta.get("bit_depth")

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels at which the model was evaluated, or None if it is not in the file."""
        size = self.meta.get("input_size")
        return (size[0], size[1]) if size else None

    def prepare(self, cfg: YAMLConfig) -> None:
        """Adjust a configuration to these weights, before `cfg.model` is built.

        This disables pretrained weights of backbones, and sets the number of classes if the configuration
        does not.
        """
        cfg.without_pretrained()
        if (
            cfg.yaml_cfg.get("num_classes") is None
            and self.num_classes is not None
        ):
            cfg.set("num_classes", self.num_classes, f"counted in {self.path}")


def read_weights(path: str | Path, family: str | None = None) -> WeightFile:
    """Read weights for evaluation or as a start: the EMA weights if the file has any, else the model's.

    The tensors get the keys of this project's models, whatever the layout of the file.

    Args:
        path: path of the file; a run folder, whose `best.pth` is used if it has one, else its `last.pth`; or
            the name of a model of `configs/models.yml`, whose file is looked for in `weights/`.
        family: family of the model, such as "deim", where the tensors fit several; None lets the file decide.

    Raises:
        CheckpointError: if the file is damaged or contains no weights.
        ConfigError: if the family is unknown.
        NumericsError: if a weight is not finite.
    """
    if family is not None and family not in FAMILIES:
        raise ConfigError(
            f"family is {family!r}, expected one of {', '.join(FAMILIES)}"
        )
    model = None
    if is_model_name(path):
        model = str(path)
        path = find_weights(model)
    path = checked_path(checkpoint_of(refuse_address(path)))
    content = read_tensor_file(path)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{path} contains a {type(content).__name__}, expected a checkpoint with 'model' or 'ema'"
        )
    weights = _weights_in(path, content)
    noted = content.get("meta")
    if path.suffix == ".safetensors":
        noted = notes_in_safetensors(path)
    notes = checked_notes(path, noted)
    converted = convert(weights, path)
    if converted.layout == TRANSFORMERS:
        classes = classes_beside(path, class_count(converted.weights))
        if classes is not None:
            notes = {**notes, "classes": classes}
    refuse_non_finite(path, converted.weights)
    return WeightFile(
        path,
        converted.weights,
        notes,
        layout=converted.layout,
        dropped=converted.dropped,
        total=len(weights),
        family=family,
        model=model,
    )


def notes_in_safetensors(path: Path) -> Any:
    """Return the notes in the header of a safetensors file of this project; None if there are none.

    Raises:
        CheckpointError: if they are not JSON.
    """
    text = safetensors_texts(path).get(SHARED_NOTES)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(
            f"{path}: the entry {SHARED_NOTES} of its header is not JSON; {ADVICE}"
        ) from None


def _weights_in(path: Path, content: dict[Any, Any]) -> dict[str, Tensor]:
    """Return the EMA weights of a checkpoint, else those of the model, without the prefix of DDP."""
    ema = content.get("ema")
    if ema is not None and not isinstance(ema, dict):
        raise CheckpointError(
            f"{path}: ema is {shown(ema)}, expected a mapping with the EMA weights as 'module'; {ADVICE}"
        )
    averaged = ema.get("module") if ema else None
    weights = averaged or content.get("model") or content
    if not isinstance(weights, dict) or not any(
        isinstance(value, Tensor) for value in weights.values()
    ):
        first_keys = ", ".join(map(str, list(content)[:8]))
        raise CheckpointError(
            f"{path} has neither weights nor the keys 'model' or 'ema' of a checkpoint; it has {first_keys}"
            f"{_other_weights(content)}"
        )
    part = "ema.module" if averaged else "model" if content.get("model") else ""
    checked(weights, dict[str, Tensor], file=path, part=part, advice=ADVICE)
    return {
        key.removeprefix("module."): value for key, value in weights.items()
    }


_OTHER_KEYS = ("state_dict", "teacher", "student", "model_state_dict")
"""Where checkpoints of other kinds of models have their weights."""


def _other_weights(content: Mapping[Any, Any]) -> str:
    """Return what a checkpoint of another kind holds, as the end of a message; "" if that is unknown."""
    for key in _OTHER_KEYS:
        weights = content.get(key)
        if isinstance(weights, dict) and weights:
            tensors = {
                str(name): value
                for name, value in weights.items()
                if isinstance(value, Tensor)
            }
            return f"; its {key} is {describe_foreign(tensors)}"
    return ""


def decoder_activation(settings: Any) -> str:
    """Return the activation of the decoder in a resolved configuration, ReLU by default."""
    model = _section(settings, _section(settings, "model"))
    decoder = _section(model, "decoder")
    if isinstance(decoder, str):
        decoder = _section(settings, decoder)
    activation = _section(decoder, "activation")
    return activation if isinstance(activation, str) else "relu"


def _section(settings: Any, key: Any) -> Any:
    """Return an entry of a mapping, or None."""
    if isinstance(settings, Mapping) and isinstance(key, str):
        return settings.get(key)
    return None


def _activation_in(path: Path) -> str | None:
    """Return the activation of the decoder in the `config.json` of transformers, or None."""
    if not path.is_file():
        return None
    try:
        settings = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None
    activation = _section(settings, "decoder_activation_function")
    return activation if isinstance(activation, str) else None


def refuse_non_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Check weights for NaN and infinity.

    Args:
        path: file of the weights, used in messages.
        weights: tensors by name.

    Raises:
        NumericsError: with the first tensor that is not finite.
    """
    key = first_non_finite(weights)
    if key is not None:
        raise NumericsError(
            f"{path}: tensor {key} contains values that are not finite; these weights cannot be used"
        )


def class_count(weights: Mapping[str, Tensor]) -> int | None:
    """Return the number of rows of the decoder's class head, or None if there is no class head.

    Args:
        weights: state dict of a detector, or weights from a file.
    """
    for key, value in sorted(weights.items()):
        is_class_bias = key.startswith(
            "decoder.dec_score_head."
        ) and key.endswith(".bias")
        if is_class_bias and value.ndim == 1:
            return len(value)
    return None
