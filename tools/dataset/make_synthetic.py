"""Generate a small synthetic data set in COCO format: shapes of four classes on textured backgrounds.

python tools/dataset/make_synthetic.py --output data/synthetic --train 1000 --val 200
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.common import user_path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        type=user_path,
        default="data/synthetic",
        help="folder to write to",
    )
    parser.add_argument(
        "--train", type=int, default=1000, help="number of training images"
    )
    parser.add_argument(
        "--val", type=int, default=200, help="number of validation images"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=128,
        help="side length of the images in pixels",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    arguments = parser.parse_args()

    from src.data.dataset.synthetic import write_synthetic_coco
    from src.runtime.process import run_command

    run_command(
        lambda: write_synthetic_coco(
            arguments.output,
            train=arguments.train,
            val=arguments.val,
            size=arguments.size,
            seed=arguments.seed,
        )
    )


if __name__ == "__main__":
    main()
