"""Export a checkpoint to an ONNX file that contains its classes, threshold and preprocessing.

    # writes runs/train/best.onnx and best.json, then compares predictions
    dfine export runs/train --check

    # a fixed batch
    dfine export best.pth --batch 4 --output four.onnx

    # for runtimes that need opset 17
    dfine export best.pth --batch 1 --exporter torchscript --opset 17

With --check, the checkpoint and the exported file predict the same images. If a box differs by more
than one pixel or a score by more than 0.01, the worst image is reported and the exit code is 8.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .common import (
    CONFIG_HELP,
    add_family_argument,
    add_model_argument,
    parser_for,
    run,
    use_model,
    use_run_folder,
    user_path,
)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    add_model_argument(parser)
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help=CONFIG_HELP,
    )
    add_family_argument(parser)
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FILE",
        help="output file; default: the checkpoint's name with .onnx",
    )
    parser.add_argument(
        "--bit-depth",
        type=int,
        choices=range(8, 17),
        metavar="BITS",
        help="bits that the samples of 16-bit images use; default: the training's",
    )
    parser.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="input size; default: the size that the model was trained for",
    )
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument(
        "--batch", type=int, metavar="N", help="fixed batch size"
    )
    batch.add_argument(
        "--dynamic",
        action="store_true",
        help="any batch size; the default",
    )
    parser.add_argument(
        "--opset",
        type=int,
        help="ONNX opset, 17 or above; default: 18, or 17 with --exporter torchscript",
    )
    parser.add_argument(
        "--exporter",
        choices=("dynamo", "torchscript"),
        default="dynamo",
        help="exporter of torch; torchscript is deprecated and needs --batch",
    )
    parser.add_argument(
        "--simplify",
        action="store_true",
        help="simplify the graph with onnxslim or onnxsim; not needed, off by default",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare the file, in ONNX Runtime, with the checkpoint",
    )
    parser.add_argument(
        "--images",
        type=user_path,
        metavar="DIR",
        help="images for --check; default: the checkpoint's validation data, or synthetic images",
    )
    parser.add_argument(
        "--count",
        type=int,
        default=16,
        help="number of images for --check; default: 16",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    use_model(parser, arguments)

    def command() -> None:
        from ..inference import Detector
        from ..inference.agreement import images_for_check
        from ..inference.checked_export import export_checked_onnx
        from ..inference.export import export_onnx

        use_run_folder(arguments)
        detector = Detector.from_checkpoint(
            arguments.resume,
            device="cpu",
            config=arguments.config,
            input_size=arguments.input_size,
            bit_depth=arguments.bit_depth,
            family=arguments.family,
        )
        path = arguments.output or Path(arguments.resume).with_suffix(".onnx")
        options = {
            "batch_size": arguments.batch,
            "opset": arguments.opset,
            "exporter": arguments.exporter,
            "simplify": arguments.simplify,
        }
        if not arguments.check:
            export_onnx(detector, path, **options)
            return
        images = images_for_check(detector, arguments.images, arguments.count)
        export_checked_onnx(detector, path, images, **options)

    run(command, arguments)
