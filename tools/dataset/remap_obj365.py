"""Split Objects365 again: keep the first validation images, move the others to the training data.

    python tools/dataset/remap_obj365.py --base_dir /data/Objects365/data

The command reads train/zhiyuan_objv2_train.json and val/zhiyuan_objv2_val.json, and writes
new_zhiyuan_objv2_{train,val}.json in the same folders.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.common import parser_for, run, user_path


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument(
        "--base_dir",
        type=user_path,
        required=True,
        metavar="DIR",
        help="folder with train/ and val/",
    )
    parser.add_argument(
        "--new_val_size",
        type=int,
        default=5000,
        help="number of images that remain for validation; default: 5000",
    )
    parser.add_argument(
        "--output_suffix",
        default="new",
        help="prefix of the names of the files that are written; default: new",
    )
    arguments = parser.parse_args()

    def command() -> None:
        from src.data.preparation.objects365 import remap
        from src.runtime.log import say

        for line in remap(
            arguments.base_dir, arguments.new_val_size, arguments.output_suffix
        ):
            say(line)

    run(command, arguments)


if __name__ == "__main__":
    main()
