"""Find objects in an image, a folder, a video or a camera with an exported model, in OpenVINO.

    python tools/inference/openvino_inf.py --ov_model best.onnx -i image.jpg

    # written by `ovc best.onnx`; best.json must be in the same folder
    python tools/inference/openvino_inf.py --ov_model best.xml -i images/ -d GPU

Preprocessing and class names are read from the .onnx file, or from the .json beside the .xml file.
All other options are those of torch_inf.py.
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
        "--ov_model",
        "-ov_model",
        required=True,
        metavar="FILE",
        help=".onnx, or .xml with its .bin and .json",
    )
    parser.add_argument(
        "-d",
        "--device",
        help="device name of OpenVINO: CPU, GPU, NPU, AUTO ...; default: CPU",
    )
    add_threads_argument(parser)
    add_prediction_arguments(
        parser, "openvino_results", also=("--image", "-image")
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)

    def command() -> None:
        from ..inference import Detector

        predict_from(
            arguments,
            lambda: Detector.from_openvino(
                arguments.ov_model,
                device=arguments.device,
                threads=arguments.threads,
            ),
        )

    run(command, arguments)
