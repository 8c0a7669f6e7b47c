"""Draw predictions beside the ground truth: one picture for each image of the validation data.

Correct predictions are solid, false ones dashed, and missed objects dotted.

python tools/visualization/compare.py -c configs/dfine/demo/dfine_dinov3_demo.yml -r output/demo/best.pth
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.common import CHECKPOINT_HELP, add_family_argument


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c", "--config", required=True, help="configuration file, .yml"
    )
    parser.add_argument("-r", "--resume", required=True, help=CHECKPOINT_HELP)
    add_family_argument(parser)
    parser.add_argument(
        "--output",
        help="folder for the pictures; default: pictures/ beside the checkpoint",
    )
    parser.add_argument(
        "--count", type=int, default=16, help="number of images"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="minimum score of boxes that are drawn; default: the checkpoint's, as for predictions",
    )
    parser.add_argument("-d", "--device", help="cpu, cuda or cuda:N")
    parser.add_argument(
        "-u",
        "--update",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override settings",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()

    from src.core import YAMLConfig
    from src.core.config_file import parse_overrides
    from src.detection.weight_file import read_weights
    from src.inference import Detector
    from src.inference.comparison import draw_comparisons
    from src.runtime.distributed import pick_device
    from src.runtime.log import set_up_logging
    from src.runtime.process import run_command

    def command() -> None:
        set_up_logging(speaks=True, debug=arguments.debug)
        cfg = YAMLConfig(
            arguments.config,
            **parse_overrides(arguments.update),
            resume=arguments.resume,
            test_only=True,
        )
        device = pick_device(arguments.device)
        file = read_weights(arguments.resume, arguments.family)
        dataset = cfg.val_dataloader.dataset
        detector = Detector.from_weights(file, cfg, device)
        output = (
            Path(arguments.output)
            if arguments.output
            else Path(arguments.resume).parent / "pictures"
        )
        names = (
            {
                label: entry["name"]
                for label, entry in enumerate(detector.classes)
            }
            if file.classes
            else None
        )
        draw_comparisons(
            detector,
            dataset,
            output,
            count=arguments.count,
            threshold=arguments.threshold,
            class_names=names,
        )

    run_command(command, debug=arguments.debug)


if __name__ == "__main__":
    main()
