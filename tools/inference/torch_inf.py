"""Find objects in an image, a folder, a video or a camera with a checkpoint.

    python tools/inference/torch_inf.py -r output/demo/best.pth -i image.jpg
    python tools/inference/torch_inf.py -r best.pth -i images/ --output found/ --threshold 0.5

    # objects far smaller than the input
    python tools/inference/torch_inf.py -r best.pth -i aerial.tif --tile 640

    # or camera:0, which Ctrl-C ends
    python tools/inference/torch_inf.py -r best.pth -i video.mp4

The checkpoint contains its configuration. Pictures or a video with boxes, names and scores are
written to --output, and all detections to predictions.json there (COCO's result format).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.common import (
    add_checkpoint_arguments,
    add_prediction_arguments,
    detector_from,
    parser_for,
    predict_from,
    run,
)


def main() -> None:
    parser = parser_for(__doc__)
    add_checkpoint_arguments(parser)
    add_prediction_arguments(parser, "torch_results")
    arguments = parser.parse_args()
    run(
        lambda: predict_from(arguments, lambda: detector_from(arguments)),
        arguments,
    )


if __name__ == "__main__":
    main()
