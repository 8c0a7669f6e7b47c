"""Find objects in an image, a folder, a video or a camera with an exported ONNX file, in ONNX Runtime.

    python tools/inference/onnx_inf.py --onnx best.onnx -i image.jpg

    # with onnxruntime-gpu
    python tools/inference/onnx_inf.py --onnx best.onnx -i images/ --output found/ -d cuda:0

Preprocessing and class names are read from the file. All other options are those of torch_inf.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.common import (
    add_prediction_arguments,
    add_threads_argument,
    parser_for,
    predict_from,
    run,
)


def main() -> None:
    parser = parser_for(__doc__)
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
    arguments = parser.parse_args()

    def command() -> None:
        from src.inference import Detector

        predict_from(
            arguments,
            lambda: Detector.from_onnx(
                arguments.onnx,
                device=arguments.device,
                threads=arguments.threads,
            ),
        )

    run(command, arguments)


if __name__ == "__main__":
    main()
