"""Find objects in an image, a folder, a video or a camera with a TensorRT 10 engine. Untested.

    # docs/deployment.md has the whole command
    trtexec --onnx=best.onnx --saveEngine=best.engine --minShapes=...
    python tools/inference/trt_inf.py -trt best.engine -i image.jpg -d cuda:0

best.json, which the export wrote beside best.onnx, must be in the folder of best.engine. All other
options are those of torch_inf.py.
"""

import argparse
from collections.abc import Sequence

from .common import add_prediction_arguments, parser_for, predict_from, run


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "-trt",
        "--trt",
        required=True,
        metavar="FILE",
        help="engine, with its .json beside it",
    )
    parser.add_argument(
        "-d",
        "--device",
        default="cuda:0",
        help="cuda or cuda:N; default: cuda:0",
    )
    add_prediction_arguments(parser, "trt_results")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)

    def command() -> None:
        from ..inference import Detector

        predict_from(
            arguments,
            lambda: Detector.from_tensorrt(
                arguments.trt, device=arguments.device
            ),
        )

    run(command, arguments)
