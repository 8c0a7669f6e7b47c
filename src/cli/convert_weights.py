"""Convert a checkpoint to this project's form, or to a folder for the package transformers.

    python reference/convert_weight.py output/run/last.pth                    # writes last_converted.pth
    python reference/convert_weight.py output/run/best.pth --to transformers  # writes best_transformers/

Checkpoints of all layouts that -r accepts can be converted. The EMA weights are used if the file has any, and
LoRA factors are merged into the weights. This project's form is {"model": weights, "meta": notes}: the notes
are those of the file, or else the configuration and the class names of the recognized model. The folder is
for DFineForObjectDetection, which only covers D-FINE with HGNetv2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import parser_for, run

if TYPE_CHECKING:
    from ..detection.weight_file import WeightFile


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument("checkpoint_file", help="checkpoint to convert")
    parser.add_argument(
        "--to",
        choices=("ours", "transformers"),
        default="ours",
        help="layout of the result; default: ours",
    )
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="configuration of the model; needed only if the checkpoint has none and is not recognized",
    )
    parser.add_argument(
        "--family",
        metavar="NAME",
        help="family of the model, such as deim, where its tensors fit several; default: its name decides",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)
    convert = {"ours": to_ours, "transformers": to_folder}[arguments.to]
    run(
        lambda: convert(
            arguments.checkpoint_file, arguments.config, arguments.family
        ),
        arguments,
    )


def to_ours(
    file: str, config: str | None = None, family: str | None = None
) -> Path:
    """Write the weights in this project's form and return the path.

    Args:
        file: path of the checkpoint, or the name of a published model.
        config: configuration of the model, if neither the file nor its tensors show it.
        family: family of the model, where its tensors fit several.

    Raises:
        CheckpointError: if the file is damaged, or already in this form.
        ConfigError: if another program wrote the file that would be replaced.
    """
    from ..core.counts import counted
    from ..core.errors import CheckpointError
    from ..detection.weight_file import read_weights
    from ..runtime.log import logger
    from ..runtime.own_files import refuse_foreign
    from ..runtime.weight_files import read_tensor_file, write_tensor_file

    read = read_weights(file, family)
    added = {} if read.config_text else notes_of(read, config)
    if not added and is_our_form(read_tensor_file(read.path), read):
        raise CheckpointError(
            f"{read.path} is already in the form of this project and has no average of weights ('ema'), so "
            "there is nothing to convert"
        )
    path = read.path.with_stem(f"{read.path.stem}_converted")
    path = path.with_suffix(".pt" if path.suffix == ".pt" else ".pth")
    refuse_foreign([path], "move it away")
    weights = folded(read, config)
    notes = {**added, **read.meta}
    content: dict[str, Any] = {"model": weights}
    if notes:
        content["meta"] = notes
    write_tensor_file(path, content)
    logger.info(
        "%s: %s, %.1f of %.1f MB",
        path,
        counted(len(weights), "tensor"),
        path.stat().st_size / 1e6,
        read.path.stat().st_size / 1e6,
    )
    return path


def to_folder(
    file: str, config: str | None = None, family: str | None = None
) -> Path:
    """Write the folder of a model for transformers and return its path; arguments as for `to_ours`.

    Raises:
        CheckpointError: if the file is damaged, already in this layout, or has another architecture.
        ConfigError: if the folder exists and is not empty.
    """
    from ..core.counts import counted
    from ..core.errors import CheckpointError
    from ..detection.fitting import load_strictly
    from ..detection.lora_weights import merged_state_dict
    from ..detection.model_config import model_config
    from ..detection.published.layouts import TRANSFORMERS
    from ..detection.transformers_folder import (
        check_new_folder,
        preprocessor_config,
        write_folder,
    )
    from ..detection.transformers_layout import to_transformers
    from ..detection.weight_file import read_weights
    from ..runtime.log import logger

    read = read_weights(file, family)
    if read.layout == TRANSFORMERS:
        raise CheckpointError(
            f"{read.path} is already in the layout of transformers, so there is nothing to convert"
        )
    folder = read.path.with_name(f"{read.path.stem}_transformers")
    check_new_folder(folder)
    cfg = model_config(read, config)
    load_strictly(cfg.model, read)
    weights, entries = to_transformers(
        merged_state_dict(cfg.model), cfg.yaml_cfg, path=read.path
    )
    preprocessor = preprocessor_config(cfg.evaluation_transforms, read.path)
    names = [entry["name"] for entry in read.named_classes]
    write_folder(folder, weights, entries, names, preprocessor)
    logger.info(
        "%s: %s and %s for DFineForObjectDetection",
        folder,
        counted(len(weights), "tensor"),
        counted(len(names), "class", "classes"),
    )
    return folder


def is_our_form(content: Any, read: WeightFile) -> bool:
    """Return whether a file holds exactly what converting it would give.

    Args:
        content: content of the file.
        read: weights read from it.
    """
    from ..detection.lora_weights import is_lora_factor

    if not isinstance(content, dict) or content.get("ema"):
        return False
    model = content.get("model")
    if not isinstance(model, dict) or set(model) != set(read.weights):
        return False
    return not any(is_lora_factor(key) for key in model)


def notes_of(read: WeightFile, config: str | None) -> dict[str, Any]:
    """Return the configuration and class names for a file without notes, or nothing if they are unknown."""
    from ..detection.model_config import model_config

    if config is None and read.recognized is None:
        return {}
    text = model_config(read, config).to_yaml()
    notes = {"classes": read.named_classes, "config": text}
    if read.recognized is not None:
        notes["family"] = read.recognized.entry.family
    return notes


def folded(read: WeightFile, config: str | None) -> dict[str, Any]:
    """Return the weights with LoRA's factors folded in, for which the model has to be built."""
    from ..core.errors import CheckpointError
    from ..detection.fitting import load_strictly
    from ..detection.lora_weights import is_lora_factor, merged_state_dict
    from ..detection.model_config import model_config

    if not any(is_lora_factor(key) for key in read.weights):
        return read.weights
    if read.config_text is None and config is None:
        raise CheckpointError(
            f"{read.path} has LoRA factors but no configuration that says how they are scaled"
        )
    model = model_config(read, config).model
    load_strictly(model, read)
    return merged_state_dict(model)
