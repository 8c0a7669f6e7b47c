"""Find objects in an image, a folder, a video or a camera with a TensorRT 10 engine. Untested.

    # docs/deployment.md has the whole command
    trtexec --onnx=best.onnx --saveEngine=best.engine --minShapes=...
    python tools/inference/trt_inf.py -trt best.engine -i image.jpg -d cuda:0

best.json, which the export wrote beside best.onnx, must be in the folder of best.engine. All other
options are those of torch_inf.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.common import add_prediction_arguments, parser_for, predict_from, run


def main() -> None:
    parser = parser_for(__doc__)
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
    arguments = parser.parse_args()

    def command() -> None:
        from src.inference import Detector

        predict_from(
            arguments,
            lambda: Detector.from_tensorrt(
                arguments.trt, device=arguments.device
            ),
        )

    run(command, arguments)


if __name__ == "__main__":
    main()
