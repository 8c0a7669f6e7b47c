"""Objects365: keep the first validation images for validation and learn from the others too.

    python tools/dataset/remap_obj365.py --base_dir /data/Objects365/data

Reads train/zhiyuan_objv2_train.json and val/zhiyuan_objv2_val.json and writes new_zhiyuan_objv2_{train,val}.json beside them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.common import parser_for, run, user_path  # noqa: E402


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
        help="images that remain for validation; default: 5000",
    )
    parser.add_argument(
        "--output_suffix",
        default="new",
        help="begins the names of the files that are written; default: new",
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
