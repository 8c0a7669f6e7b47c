"""Find objects in images, folders, a video or a camera.

    dfine predict runs/train image.jpg
    dfine predict best.pth images/ --output found/ --threshold 0.5

    # objects far smaller than the input
    dfine predict best.pth aerial.tif --tile 640

    # a video; or camera:0, which Ctrl-C ends
    dfine predict best.pth video.mp4

    # an exported model
    dfine predict best.onnx image.jpg

The model contains its configuration. Pictures or a video with boxes, names and scores are written to
--output, and all detections to predictions.json there (COCO's result format).
"""

import argparse
from collections.abc import Sequence

from .common import (
    CHECKPOINT_HELP,
    add_detector_arguments,
    add_prediction_arguments,
    detector_from,
    parser_for,
    predict_from,
    run,
)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"run folder, exported model, or {CHECKPOINT_HELP}",
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="images and folders, or a video, the address of a stream, or camera:N",
    )
    parser.add_argument(
        "-r", "--resume", metavar="FILE", help="the same as MODEL"
    )
    add_detector_arguments(parser)
    add_prediction_arguments(parser, "torch_results", required=False)
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    parser = make_parser(prog)
    arguments = parser.parse_intermixed_args(argv)
    words = [*arguments.sources]
    if arguments.model is not None:
        words.insert(0, arguments.model)
    if arguments.resume is None and words:
        arguments.resume = words.pop(0)
    sources = [arguments.input] if arguments.input else []
    sources += words
    if arguments.resume is None or not sources:
        missing = "SOURCE" if arguments.resume else "MODEL, SOURCE"
        parser.error(f"the following arguments are required: {missing}")
    arguments.input, *arguments.more = sources
    run(
        lambda: predict_from(arguments, lambda: detector_from(arguments)),
        arguments,
    )
