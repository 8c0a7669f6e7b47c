"""Find objects in an image, a folder, a video or a camera with a checkpoint.

    dfine predict -r output/demo/best.pth -i image.jpg
    dfine predict -r best.pth -i images/ --output found/ --threshold 0.5

    # objects far smaller than the input
    dfine predict -r best.pth -i aerial.tif --tile 640

    # or camera:0, which Ctrl-C ends
    dfine predict -r best.pth -i video.mp4

The checkpoint contains its configuration. Pictures or a video with boxes, names and scores are
written to --output, and all detections to predictions.json there (COCO's result format).
"""

import argparse
from collections.abc import Sequence

from .common import (
    add_checkpoint_arguments,
    add_prediction_arguments,
    detector_from,
    parser_for,
    predict_from,
    run,
)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    add_checkpoint_arguments(parser)
    add_prediction_arguments(parser, "torch_results")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)
    run(
        lambda: predict_from(arguments, lambda: detector_from(arguments)),
        arguments,
    )
