"""Split Objects365 again: keep the first validation images, move the others to the training data.

    python tools/dataset/remap_obj365.py --base_dir /data/Objects365/data

The command reads train/zhiyuan_objv2_train.json and val/zhiyuan_objv2_val.json, and writes
new_zhiyuan_objv2_{train,val}.json in the same folders.
"""

import argparse
from collections.abc import Sequence

from .common import parser_for, run, user_path


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "--base_dir",
        type=user_path,
        required=True,
        metavar="DIR",
        help="folder with train/ and val/",
    )
    parser.add_argument(
        "--new_val_size",
        type=int,
        default=5000,
        help="number of images that remain for validation; default: 5000",
    )
    parser.add_argument(
        "--output_suffix",
        default="new",
        help="prefix of the names of the files that are written; default: new",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)

    def command() -> None:
        from ..data.preparation.objects365 import remap
        from ..runtime.log import say

        for line in remap(
            arguments.base_dir, arguments.new_val_size, arguments.output_suffix
        ):
            say(line)

    run(command, arguments)
