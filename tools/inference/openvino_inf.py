"""Find objects in an image, a folder, a video or a camera with an exported model, in OpenVINO.

    python tools/inference/openvino_inf.py --ov_model best.onnx -i image.jpg

    # written by `ovc best.onnx`; best.json must be in the same folder
    python tools/inference/openvino_inf.py --ov_model best.xml -i images/ -d GPU

Preprocessing and class names are read from the .onnx file, or from the .json beside the .xml file.
All other options are those of torch_inf.py.
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
    arguments = parser.parse_args()

    def command() -> None:
        from src.inference import Detector

        predict_from(
            arguments,
            lambda: Detector.from_openvino(
                arguments.ov_model,
                device=arguments.device,
                threads=arguments.threads,
            ),
        )

    run(command, arguments)


if __name__ == "__main__":
    main()
