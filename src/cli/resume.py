"""Resume a run that was stopped: its folder is enough.

    dfine resume runs/train

The run knows its configuration, its data and its settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .common import add_log_argument, log_arguments, parser_for
from .launch import run_trainer
from .train import add_run_arguments, run_arguments


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "run", metavar="RUN", help="folder of the run, or its last.pth"
    )
    add_run_arguments(parser)
    add_log_argument(parser)
    parser.add_argument(
        "--override",
        action="store_true",
        help="resume although the configuration or the data has changed",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)
    run_trainer(lambda: trainer_arguments(arguments), arguments)


def trainer_arguments(arguments: argparse.Namespace) -> list[str]:
    """Return the arguments of `train.py` that resume the run.

    Raises:
        CheckpointError: if there is no such run.
    """
    from ..core.errors import CheckpointError
    from ..core.paths import did_you_mean_file, user_path
    from ..detection.run_checkpoint import LAST

    path = user_path(arguments.run)
    if path.is_dir():
        path = path / LAST
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist, so there is no run to resume{did_you_mean_file(path)}"
        )
    words = ["-r", str(path), "--output-dir", str(path.parent)]
    if arguments.override:
        words.append("--override")
    words += log_arguments(arguments.log)
    return words + run_arguments(arguments)
