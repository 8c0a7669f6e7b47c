"""Train a detector on your data.

    dfine train --data DIR
    dfine train --data data.yaml --model n --epochs 30 --name cats

    # two GPUs: starts one process for each
    dfine train --data DIR --gpus 2 --use-amp

    # the largest batch that fits, and the run in MLflow too
    dfine train --data DIR --batch auto --log mlflow

    # any other setting of the configuration
    dfine train --data DIR -u optimizer.lr=1e-4 train_dataloader.num_workers=8

The data set may be COCO, YOLO or Pascal VOC; what was found is logged. The training starts from a detector in
weights/ if there is one for the model, otherwise from its pre-trained backbone. Results are written to
runs/NAME.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .common import (
    BATCH_HELP,
    add_dataset_arguments,
    add_log_argument,
    batch_settings,
    batch_size,
    log_arguments,
    parser_for,
)
from .launch import add_gpus_argument, run_trainer

DEFAULT_NAME = "train"


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    add_dataset_arguments(parser)
    parser.add_argument(
        "--model",
        help="size (n, s, s2, t, m, l, x), tiny, a model of `dfine models`, a configuration, a checkpoint or "
        "a run folder; default: s",
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="length of the training"
    )
    parser.add_argument(
        "--batch", type=batch_size, metavar="N", help=BATCH_HELP
    )
    parser.add_argument(
        "--imgsz", type=int, metavar="PIXELS", help="side of the input"
    )
    add_run_arguments(parser)
    add_log_argument(parser)
    parser.add_argument(
        "--seed", type=int, help="random seed; default: a random one"
    )
    parser.add_argument(
        "--use-amp", action="store_true", help="use mixed precision"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="treat every data warning as an error",
    )
    parser.add_argument(
        "--name",
        help=f"name of the folder in runs/; default: {DEFAULT_NAME}",
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", help="folder of the run; replaces --name"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start a new run in the folder of another one, whose results are moved to earlier/ in it",
    )
    return parser


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add arguments that all commands which train or evaluate share."""
    parser.add_argument(
        "-d",
        "--device",
        help="cpu, cuda or cuda:N; default: CUDA if available",
    )
    add_gpus_argument(parser)
    parser.add_argument(
        "-u",
        "--update",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override settings of the configuration, e.g. optimizer.lr=1e-4",
    )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    for name in ("epochs", "batch", "imgsz"):
        value = getattr(arguments, name)
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} is {value}, expected at least 1")
    if arguments.name and arguments.output_dir:
        parser.error("pass --name or --output-dir, not both")
    if arguments.data is None and not _has_data(arguments):
        parser.error(
            "--data is missing: pass a folder of images and labels, a data.yaml or a COCO file"
        )
    run_trainer(lambda: trainer_arguments(arguments), arguments)


def _has_data(arguments: argparse.Namespace) -> bool:
    """Return whether the data may come from elsewhere: -u, or a configuration or run that names its own."""
    if any("dataloader" in item for item in arguments.update):
        return True
    model = arguments.model
    if model is None:
        return False
    return model.endswith((".yml", ".yaml", ".pth")) or Path(model).is_dir()


def trainer_arguments(arguments: argparse.Namespace) -> list[str]:
    """Return the arguments of `train.py` for this training; its folder is created.

    Raises:
        ConfigError: if the model is unknown, or the folder cannot be created.
        CheckpointError: if there is nothing to start from.
    """
    from ..detection.start_choice import choose_start
    from ..runtime.log import logger
    from ..solver.run_folder import choose_folder, has_own_folder

    start = choose_start(arguments.model)
    logger.info("%s", start.reason)
    words: list[str] = []
    if start.config is not None:
        words += ["-c", str(start.config)]
    if start.weights is not None:
        words += ["-t", start.weights]
    words += data_arguments(arguments)
    folder = arguments.output_dir
    if folder is None and not has_own_folder(start.config, arguments.update):
        folder = choose_folder(arguments.name or DEFAULT_NAME)
        logger.info("results will be in %s", folder)
    if folder is not None:
        words += ["--output-dir", str(folder)]
    for flag in ("use_amp", "strict", "overwrite"):
        if getattr(arguments, flag):
            words.append("--" + flag.replace("_", "-"))
    if arguments.seed is not None:
        words.append(f"--seed={arguments.seed}")
    words += log_arguments(arguments.log)
    return words + run_arguments(arguments, settings_of(arguments))


def data_arguments(arguments: argparse.Namespace) -> list[str]:
    """Return the arguments about the data set, as `train.py` takes them."""
    if arguments.data is None:
        return []
    words = ["--data", str(arguments.data)]
    if arguments.data_format is not None:
        words += ["--data-format", arguments.data_format]
    if arguments.data_images is not None:
        words += ["--data-images", str(arguments.data_images)]
    if arguments.follow_links:
        words.append("--follow-links")
    fraction = getattr(arguments, "val_fraction", None)
    if fraction is not None:
        words.append(f"--val-fraction={fraction}")
    return words


def settings_of(arguments: argparse.Namespace) -> list[str]:
    """Return the settings that `--epochs`, `--batch` and `--imgsz` stand for, as for `-u`."""
    settings = []
    if arguments.epochs is not None:
        settings.append(f"epochs={arguments.epochs}")
    settings += batch_settings(arguments.batch)
    if arguments.imgsz is not None:
        size = arguments.imgsz
        settings.append(f"eval_spatial_size=[{size}, {size}]")
    return settings


def run_arguments(
    arguments: argparse.Namespace, settings: Sequence[str] = ()
) -> list[str]:
    """Return the arguments of `train.py` that come from `add_run_arguments`; `-u` is last.

    Args:
        arguments: parsed arguments.
        settings: further settings, which `-u` of the user overrides.
    """
    words: list[str] = []
    if arguments.device is not None:
        words += ["-d", arguments.device]
    if arguments.debug:
        words.append("--debug")
    updates = [*settings, *arguments.update]
    if updates:
        words += ["-u", *updates]
    return words
