"""Draw predictions beside the ground truth: one picture for each image of the validation data.

Correct predictions are solid, false ones dashed, and missed objects dotted.

python tools/visualization/compare.py -c configs/dfine/demo/dfine_dinov3_demo.yml -r output/demo/best.pth
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import CHECKPOINT_HELP, add_family_argument


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = argparse.ArgumentParser(
        prog=prog,
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
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)

    from ..core import YAMLConfig
    from ..core.config_file import parse_overrides
    from ..detection.weight_file import read_weights
    from ..inference import Detector
    from ..inference.comparison import draw_comparisons
    from ..runtime.distributed import pick_device
    from ..runtime.log import set_up_logging
    from ..runtime.process import run_command

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
        dataset: Any = cfg.val_dataloader.dataset
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
