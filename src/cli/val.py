"""Evaluate a detector on labelled images.

    # on the validation data of the run
    dfine val runs/train

    # on other data, or with a published detector
    dfine val runs/train --data DIR
    dfine val dfine_l_coco --data DIR

    # an exported model
    dfine val best.int8.xml --data DIR

    # in a script: exit code 5 if the score is too low
    dfine val runs/train --min-ap 0.5

The metrics are COCO's. The best checkpoint of the run is evaluated. An exported model names no data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .common import (
    CHECKPOINT_HELP,
    EXPORTED_ENDINGS,
    add_dataset_arguments,
    add_family_argument,
    add_min_ap_argument,
    parser_for,
    run,
)
from .launch import run_trainer
from .train import add_run_arguments, data_arguments, run_arguments


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"run folder, exported model, or {CHECKPOINT_HELP}",
    )
    add_dataset_arguments(parser, split=False)
    add_family_argument(parser)
    add_run_arguments(parser)
    add_min_ap_argument(parser)
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help="folder for eval.pth; default: the run folder, or runs/val",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    if arguments.model.lower().endswith(EXPORTED_ENDINGS):
        refuse_unused(parser, arguments)
        run(lambda: evaluate_exported(arguments), arguments)
        return
    run_trainer(lambda: trainer_arguments(arguments), arguments)


def refuse_unused(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> None:
    """Report arguments that an exported model does not use, or lacks."""
    for name in ("family", "gpus", "update", "output_dir"):
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(
                f"--{name.replace('_', '-')} is only used with checkpoints, but {arguments.model} is an "
                "exported model"
            )
    if arguments.data is None:
        parser.error(
            f"--data is missing: {arguments.model} is an exported model, which names no validation data"
        )


def evaluate_exported(arguments: argparse.Namespace) -> None:
    """Evaluate an exported model on the validation part of `--data`, and print the metrics."""
    from ..core.coco_metrics import METRICS
    from ..data.preparation.any_dataset import find_dataset
    from ..inference import Detector
    from ..inference.detector_evaluation import (
        evaluate_detector,
        open_labelled_images,
    )
    from ..runtime.log import logger, say
    from ..solver.model_selection import require_ap

    found = find_dataset(
        arguments.data,
        data_format=arguments.data_format,
        images=arguments.data_images,
        follow_links=arguments.follow_links,
        split=False,
        for_evaluation=True,
    )
    for line in [*found.remarks, *found.warnings]:
        logger.info("%s", line)
    detector = Detector(arguments.model, device=arguments.device)
    dataset = open_labelled_images(detector, found.val_images, found.val_ann)
    metrics = evaluate_detector(detector, dataset).metrics
    for name in METRICS:
        value = metrics[name]
        say(f"{name:10s} {'-' if value is None else f'{value:.4f}'}")
    if arguments.min_ap is not None:
        require_ap(metrics, arguments.min_ap)


def trainer_arguments(arguments: argparse.Namespace) -> list[str]:
    """Return the arguments of `train.py` that evaluate the detector.

    Raises:
        CheckpointError: if a folder contains no checkpoint.
    """
    from ..detection.run_checkpoint import checkpoint_of
    from ..solver.run_folder import choose_folder

    checkpoint = checkpoint_of(arguments.model)
    words = ["-r", str(checkpoint), "--test-only"]
    words += data_arguments(arguments)
    if arguments.family is not None:
        words += ["--family", arguments.family]
    folder = arguments.output_dir
    if folder is None:
        is_own_run = arguments.data is None and Path(arguments.model).is_dir()
        folder = arguments.model if is_own_run else choose_folder("val")
    words += ["--output-dir", str(folder)]
    if arguments.min_ap is not None:
        words.append(f"--min-ap={arguments.min_ap}")
    return words + run_arguments(arguments)
