"""Write smaller copies of large Objects365 images, *_resized.jpg, and *_resized.json with their boxes.

    python tools/dataset/resize_obj365.py --base_dir /data/Objects365/data --num_workers 16

The command can be stopped and started again. It reads new_zhiyuan_objv2_{train,val}.json of
remap_obj365.py, or zhiyuan_objv2_{train,val}.json if these do not exist.
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
        "--max_size",
        type=int,
        default=640,
        help="longest side in pixels; default: 640",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=4,
        help="number of processes; default: 4",
    )
    arguments = parser.parse_args()

    def command() -> None:
        from src.data.preparation.objects365 import resize
        from src.runtime.log import say

        for line in resize(
            arguments.base_dir, arguments.max_size, arguments.num_workers
        ):
            say(line)

    run(command, arguments)


if __name__ == "__main__":
    main()
