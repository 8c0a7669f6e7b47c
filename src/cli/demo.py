"""Train a small detector on synthetic shapes, and write a report about its errors: minutes on a CPU.

    dfine demo

    # seconds, to see whether everything works
    dfine demo --epochs 1 --train-images 40 --val-images 10

The data set is written to data/ in the folder of the run, which is runs/demo. The same images, and the same
numbers on the same machine, result from the same seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import trainer
from .common import parser_for, user_path

CONFIG = "dfine_dinov3_demo"
NAME = "demo"


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="length of the training; default: 12",
    )
    parser.add_argument(
        "--train-images",
        type=int,
        default=1000,
        metavar="N",
        help="training images; default: 1000",
    )
    parser.add_argument(
        "--val-images",
        type=int,
        default=200,
        metavar="N",
        help="validation images; default: 200",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=128,
        metavar="PIXELS",
        help="side of the images, a multiple of 32; default: 128",
    )
    parser.add_argument("-d", "--device", help="cpu, cuda or cuda:N")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; default: 0"
    )
    parser.add_argument(
        "--output-dir",
        type=user_path,
        metavar="DIR",
        help=f"folder of the run; default: runs/{NAME}, or runs/{NAME}2 and so on",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    if arguments.epochs is not None and arguments.epochs < 1:
        parser.error(f"--epochs is {arguments.epochs}, expected at least 1")
    if min(arguments.train_images, arguments.val_images) < 1:
        parser.error("--train-images and --val-images must be at least 1")
    if arguments.size < 32 or arguments.size % 32:
        parser.error(f"--size is {arguments.size}, expected a multiple of 32")
    folder = _prepare(arguments)
    trainer.main(_training(folder, arguments))


def _prepare(arguments: argparse.Namespace) -> Path:
    """Write the data set into the folder of the run, and return this folder."""
    from ..data.dataset.synthetic import write_synthetic_coco
    from ..runtime.log import logger, set_up_logging
    from ..runtime.process import end_in_order, run_command
    from ..solver.run_folder import choose_folder

    folders: list[Path] = []

    def command() -> None:
        folder = arguments.output_dir or choose_folder(NAME)
        folders.append(folder)
        logger.info("writing synthetic images to %s", folder / "data")
        write_synthetic_coco(
            folder / "data",
            train=arguments.train_images,
            val=arguments.val_images,
            size=arguments.size,
            seed=arguments.seed,
        )

    set_up_logging(speaks=True, debug=arguments.debug)
    end_in_order()
    try:
        run_command(command, debug=arguments.debug)
    except SystemExit as end:
        if end.code:
            raise
    return folders[0]


def _training(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Return the arguments of the trainer."""
    data = folder / "data"
    words = [
        *("-c", CONFIG),
        *("--data", str(data)),
        *("--output-dir", str(folder)),
        f"--seed={arguments.seed}",
    ]
    if arguments.device is not None:
        words += ["-d", arguments.device]
    if arguments.debug:
        words.append("--debug")
    settings = [f"eval_spatial_size=[{arguments.size}, {arguments.size}]"]
    if arguments.epochs is not None:
        settings += _shorter(arguments.epochs)
    return [*words, "-u", *settings]


def _shorter(epochs: int) -> list[str]:
    """Return settings for another length, with the demo's proportions."""
    return [
        f"epochs={epochs}",
        f"lr_scheduler.milestones=[{max(1, epochs * 9 // 12)}]",
        f"train_dataloader.collate_fn.stop_epoch={max(1, epochs * 11 // 12)}",
    ]
