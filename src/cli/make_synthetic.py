"""Generate a small synthetic data set in COCO format: shapes of four classes on textured backgrounds.

python tools/dataset/make_synthetic.py --output data/synthetic --train 1000 --val 200
"""

import argparse
from collections.abc import Sequence

from .common import user_path


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        type=user_path,
        default="data/synthetic",
        help="folder to write to",
    )
    parser.add_argument(
        "--train", type=int, default=1000, help="number of training images"
    )
    parser.add_argument(
        "--val", type=int, default=200, help="number of validation images"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=128,
        help="side length of the images in pixels",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)

    from ..data.dataset.synthetic import write_synthetic_coco
    from ..runtime.process import run_command

    run_command(
        lambda: write_synthetic_coco(
            arguments.output,
            train=arguments.train,
            val=arguments.val,
            size=arguments.size,
            seed=arguments.seed,
        )
    )
