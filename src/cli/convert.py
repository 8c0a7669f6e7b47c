"""Convert a data set in YOLO or Pascal VOC layout to COCO: train.json and val.json.

Training with --data reads these layouts without conversion. A checkpoint (.pth, .pt, .safetensors) is
converted to this project's form, or with `--to transformers` to a folder for the package transformers.

    dfine convert data/mydata/data.yaml --output data/mydata_coco
    dfine convert data/VOC2012 --output data/voc_coco --difficult crowd

Images are not copied. Without validation images, a fraction of the training images is split off;
a COCO file is split in the same way. docs/data.md describes the layouts.

    dfine convert best.pth --to transformers
"""

import argparse
import sys
from collections.abc import Sequence

from . import convert_weights
from .common import DATA_FORMATS, fraction, parser_for, run, user_path

WEIGHT_ENDINGS = (".pth", ".pt", ".safetensors")
"""Endings of checkpoints; any other input is a data set."""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "input",
        type=user_path,
        help="folder of the data set, data.yaml or COCO file",
    )
    parser.add_argument(
        "--output",
        type=user_path,
        required=True,
        metavar="DIR",
        help="folder for train.json and val.json",
    )
    parser.add_argument(
        "--data-format",
        choices=DATA_FORMATS,
        help="format of the labels, if they exist in several formats; default: recognized",
    )
    parser.add_argument(
        "--data-images",
        type=user_path,
        metavar="DIR",
        help="image folder of a COCO file; default: found near the file",
    )
    parser.add_argument(
        "--val-fraction",
        type=fraction,
        default=0.1,
        help="fraction of images for validation if the data set has none; default: 0.1",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="random seed of this split; default: 0",
    )
    parser.add_argument(
        "--difficult",
        choices=("keep", "skip", "crowd"),
        default="keep",
        help="VOC: handling of difficult objects; default: keep",
    )
    parser.add_argument(
        "--zero-based",
        action="store_true",
        help="VOC: corners are counted from 0, not from 1",
    )
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="open files that are symbolic links out of the data set",
    )
    parser.add_argument(
        "--drop-boxes",
        action="store_true",
        help="drop and count boxes without area or outside their image, which are faults otherwise",
    )
    parser.add_argument(
        "--report",
        type=user_path,
        metavar="FILE",
        help="write all faults as JSON",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word.endswith(WEIGHT_ENDINGS) for word in words):
        convert_weights.main(words, prog)
        return
    arguments = make_parser(prog).parse_args(argv)

    def command() -> None:
        from ..data.preparation.convert import convert
        from ..runtime.log import say

        for line in convert(
            arguments.input,
            arguments.output,
            val_fraction=arguments.val_fraction,
            seed=arguments.seed,
            difficult=arguments.difficult,
            zero_based=arguments.zero_based,
            follow_links=arguments.follow_links,
            drop_boxes=arguments.drop_boxes,
            report=arguments.report,
            data_format=arguments.data_format,
            images=arguments.data_images,
        ):
            say(line)

    run(command, arguments)
