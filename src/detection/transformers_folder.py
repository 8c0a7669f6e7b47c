"""The folder with a model that the package transformers reads with `from_pretrained`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.coco_categories import COCO_NAMES
from ..core.errors import CheckpointError, ConfigError, first_line
from ..core.paths import read_text
from ..core.schemas import shown
from ..runtime.files import prepare_output_dir, write_atomically, write_json

_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
"""Statistics that transformers' image processors note even if they do not use them."""

_WITHOUT_EFFECT = (
    "ConvertPILImage",
    "ConvertBoxes",
    "SanitizeBoundingBoxes",
    "EmptyTransform",
)
"""Transforms that need no entry: images become numbers from 0 to 1, and boxes are not in the input."""


def check_new_folder(folder: Path) -> None:
    """Check that nothing would be replaced in a folder.

    Raises:
        ConfigError: if the path is a file, or a folder that is not empty.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise ConfigError(
            f"{folder} exists and would be replaced; move it away"
        )


def write_folder(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    names: Sequence[str],
    preprocessor: Mapping[str, Any],
) -> None:
    """Write `model.safetensors`, `config.json` and `preprocessor_config.json`.

    Args:
        folder: a new or empty folder.
        weights: tensors and
        config: entries of `DFineConfig`, both from `to_transformers`.
        names: name of each class in the order of the labels.
        preprocessor: entries of the image processor, from `preprocessor_config`.

    Raises:
        ConfigError: if the folder is not empty.
        ResourceError: if the disk is full.
    """
    from safetensors.torch import save

    check_new_folder(folder)
    prepare_output_dir(folder)
    content = save(dict(weights), {"format": "pt"})
    write_atomically(
        folder / "model.safetensors", lambda file: file.write(content)
    )
    labels = {str(label): name for label, name in enumerate(names)}
    ids = {name: label for label, name in enumerate(names)}
    write_json(
        folder / "config.json",
        {**config, "id2label": labels, "label2id": ids},
    )
    write_json(folder / "preprocessor_config.json", preprocessor)


def preprocessor_config(
    ops: Sequence[Mapping[str, Any]], path: str | Path
) -> dict[str, Any]:
    """Return the entries of the image processor that does what our transforms for evaluation do.

    Args:
        ops: `{type: name, argument: value ...}` in order, from `YAMLConfig.evaluation_transforms`.
        path: file of the model, used in messages.

    Raises:
        CheckpointError: if there is a transform that the image processor does not have, or no Resize.
    """
    size = None
    normalize: Mapping[str, Any] | None = None
    for op in ops:
        kind = op.get("type")
        if kind == "Resize":
            size = op.get("size")
        elif kind == "Normalize":
            normalize = op
        elif kind not in _WITHOUT_EFFECT:
            raise CheckpointError(
                f"{path} cannot be written for transformers: its images are prepared with {shown(kind)}, "
                "expected Resize, ConvertPILImage and Normalize"
            )
    if isinstance(size, int):
        size = [size, size]
    if size is None:
        raise CheckpointError(
            f"{path} cannot be written for transformers: the transforms of its validation data have no "
            "Resize, so the input size is not known"
        )
    statistics = normalize or _IMAGENET
    return {
        "image_processor_type": "RTDetrImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"height": size[0], "width": size[1]},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": normalize is not None,
        "image_mean": list(statistics.get("mean", _IMAGENET["mean"])),
        "image_std": list(statistics.get("std", _IMAGENET["std"])),
        "do_convert_annotations": True,
        "do_pad": False,
    }


def classes_beside(
    path: Path, count: int | None
) -> list[dict[str, Any]] | None:
    """Return id and name of each class from `config.json` beside a file of transformers.

    The ids are the labels, because transformers has no ids of categories.

    Args:
        path: file of the weights.
        count: number of classes of the model.

    Returns:
        `{"id": label, "name": name}` for each label. None if there are no names of that number, or if they
        are COCO's, whose usual names and ids `class_names.named_classes` knows.

    Raises:
        CheckpointError: if `config.json` is not a JSON file.
    """
    file = path.with_name("config.json")
    if not file.is_file():
        return None
    try:
        content = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is not a JSON file: {first_line(error)}"
        ) from None
    labels = content.get("id2label") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        return None
    names = [labels.get(str(label)) for label in range(len(labels))]
    if len(names) != count or not all(_is_name(name) for name in names):
        return None
    same = sum(a == b for a, b in zip(names, COCO_NAMES))
    if count == len(COCO_NAMES) and same > count / 2:
        return None
    return [{"id": label, "name": name} for label, name in enumerate(names)]


def _is_name(name: Any) -> bool:
    """Return whether an entry is a name, and not one of those that transformers invents."""
    return isinstance(name, str) and not re.fullmatch(r"LABEL_\d+", name)
