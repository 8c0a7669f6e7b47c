"""Reproduce the COCO figures of a model: check, train, evaluate, and write a row for the table of models.

    python tools/reproduce.py
    python tools/reproduce.py dfine_dinov3_s_coco --data /data/COCO2017 --gpus 8

    # one epoch, to see that everything works
    python tools/reproduce.py --data /data/COCO2017 --epochs 1

The steps are: doctor (the machine), data, start weights, training, evaluation, result. Nothing is
downloaded except ImageNet weights of HGNetv2. Each step is recorded when it is done, so a second call
with the same arguments continues where the first one ended. Ctrl-C, SIGTERM and SIGUSR1 save the
training and end with exit code 75.

The model is a name of configs/models.yml; its configuration has the recipe. Settings of -u replace those
of the recipe, and the result lists them. Batch sizes are totals over all GPUs, so the number of GPUs does
not change the recipe.

Results are in runs/coco/MODEL: result.json and result.txt (the row), doctor.json, data.json, and the run
in run/. With --epochs N, the folder is runs/coco/MODEL_epochsN.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .common import parser_for, run, user_path
from .reproduction.defaults import DEFAULT_MODEL


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help=f"name of a model in configs/models.yml; default: {DEFAULT_MODEL}",
    )
    parser.add_argument(
        "--data",
        type=user_path,
        metavar="DIR",
        help="folder of COCO 2017 with train2017/, val2017/ and annotations/; default: the paths in "
        "configs/dataset/coco_detection.yml",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="number of GPUs; default: all; with -d cpu: number of processes",
    )
    parser.add_argument(
        "-d", "--device", help="cpu, cuda or cuda:N; default: CUDA"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="shorten the training, for example to 1; default: the recipe's",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; default: 0"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="leave out the doctor's training steps, and read only the headers of images",
    )
    parser.add_argument(
        "--output-dir",
        type=user_path,
        metavar="DIR",
        help="folder of all results; default: runs/coco/MODEL",
    )
    parser.add_argument(
        "-u",
        "--update",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override settings of the recipe, e.g. train_dataloader.num_workers=8",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    if arguments.epochs is not None and arguments.epochs < 1:
        parser.error(f"--epochs is {arguments.epochs}, expected at least 1")
    run(lambda: reproduce(arguments), arguments)


def reproduce(arguments: argparse.Namespace) -> None:
    """Run all steps that are not done, and print the row.

    Raises:
        RunError: with an exit code, if something is missing, a step fails or a signal ends it.
    """
    from ..core.commands import is_installed
    from ..core.errors import ConfigError
    from ..runtime.files import is_in_use, locked, prepare_output_dir
    from ..runtime.log import say
    from .reproduction.plan import make_plan
    from .reproduction.record import Record
    from .reproduction.result import refuse_foreign_results
    from .reproduction.steps import RECORD, Steps

    if is_installed():
        raise ConfigError(
            "this command works only in a clone of the repository, because it uses train.py and tools/; run "
            "python tools/reproduce.py there"
        )
    plan = make_plan(arguments)
    folder = plan.job.folder
    prepare_output_dir(folder)
    refuse_foreign_results(folder)
    if is_in_use(plan.job.run_folder):
        raise ConfigError(
            f"the training in {plan.job.run_folder} is still running, started by an earlier call; wait for "
            "its end or end it, then repeat this command"
        )
    with locked(folder):
        steps = Steps(plan, Record(folder / RECORD))
        steps.refuse_other_training()
        for number, (title, step) in enumerate(steps.in_order(), 1):
            say("")
            say(f"== {number}/6 {title} ==")
            step()


if __name__ == "__main__":
    main()
