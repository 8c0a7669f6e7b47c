"""Write smaller copies of large Objects365 images, *_resized.jpg, and *_resized.json with their boxes.

    python tools/dataset/resize_obj365.py --base_dir /data/Objects365/data --num_workers 16

The command can be stopped and started again. It reads new_zhiyuan_objv2_{train,val}.json of
remap_obj365.py, or zhiyuan_objv2_{train,val}.json if these do not exist.
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
        "--max_size",
        type=int,
        default=640,
        help="longest side in pixels; default: 640",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=4,
        help="number of processes; default: 4",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)

    def command() -> None:
        from ..data.preparation.objects365 import resize
        from ..runtime.log import say

        for line in resize(
            arguments.base_dir, arguments.max_size, arguments.num_workers
        ):
            say(line)

    run(command, arguments)
