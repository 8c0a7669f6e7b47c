"""Objects365: write smaller copies of large images, *_resized.jpg, and *_resized.json with their boxes.

The command can be stopped and started again.

    python tools/dataset/resize_obj365.py --base_dir /data/Objects365/data --num_workers 16

Takes new_zhiyuan_objv2_{train,val}.json of remap_obj365.py, or without them zhiyuan_objv2_{train,val}.json.
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
        "--max_size", type=int, default=640, help="longest side in pixels; default: 640"
    )
    parser.add_argument(
        "--num_workers", type=int, default=4, help="processes; default: 4"
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
