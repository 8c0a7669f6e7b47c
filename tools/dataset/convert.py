"""Convert a data set in YOLO or Pascal VOC layout to COCO: train.json and val.json.

train.py --data reads these layouts without conversion.

    python tools/dataset/convert.py data/mydata/data.yaml --output data/mydata_coco
    python tools/dataset/convert.py data/VOC2012 --output data/voc_coco --difficult crowd

Images are not copied. Without validation images, a fraction of the training images is split off;
a COCO file is split in the same way. docs/data.md describes the layouts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.common import DATA_FORMATS, fraction, parser_for, run, user_path


def main() -> None:
    parser = parser_for(__doc__)
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
    arguments = parser.parse_args()

    def command() -> None:
        from src.data.preparation.convert import convert
        from src.runtime.log import say

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


if __name__ == "__main__":
    main()
