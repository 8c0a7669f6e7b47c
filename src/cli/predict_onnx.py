"""Find objects in an image, a folder, a video or a camera with an exported ONNX file, in ONNX Runtime.

    python tools/inference/onnx_inf.py --onnx best.onnx -i image.jpg

    # with onnxruntime-gpu
    python tools/inference/onnx_inf.py --onnx best.onnx -i images/ --output found/ -d cuda:0

Preprocessing and class names are read from the file. All other options are those of torch_inf.py.
"""

import argparse
from collections.abc import Sequence

from .common import (
    add_prediction_arguments,
    add_threads_argument,
    parser_for,
    predict_from,
    run,
)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "--onnx",
        required=True,
        metavar="FILE",
        help="file written by tools/deployment/export_onnx.py",
    )
    parser.add_argument(
        "-d",
        "--device",
        help="cpu, cuda or cuda:N; default: CUDA if ONNX Runtime supports it",
    )
    add_threads_argument(parser)
    add_prediction_arguments(parser, "onnx_results")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)

    def command() -> None:
        from ..inference import Detector

        predict_from(
            arguments,
            lambda: Detector.from_onnx(
                arguments.onnx,
                device=arguments.device,
                threads=arguments.threads,
            ),
        )

    run(command, arguments)
