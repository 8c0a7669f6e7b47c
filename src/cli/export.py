"""Export a checkpoint to an ONNX file that contains its classes, threshold and preprocessing.

    # writes runs/train/best.onnx and best.json, then compares predictions
    dfine export runs/train --check

    # a fixed batch
    dfine export best.pth --batch 4 --output four.onnx

    # for runtimes that need opset 17
    dfine export best.pth --batch 1 --exporter torchscript --opset 17

    # 8-bit integers, calibrated on images of the training; writes best.int8.xml, .bin and .json
    dfine export runs/train --int8 openvino --calibration data.yaml

With --check, the checkpoint and the exported file predict the same images. If a box differs by more
than one pixel or a score by more than 0.01, the worst image is reported and the exit code is 8.

With --int8, AP is measured on the validation data before and after. If it falls by more than
--max-ap-loss whatever parts stay in float, nothing is written and the exit code is 8.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from ..inference import Detector


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
    parser.add_argument(
        "--sampling",
        choices=("grid_sample", "gather"),
        default="grid_sample",
        help="operations that read the points of the decoder; gather is for runtimes whose GridSample is "
        "wrong or missing; default: grid_sample",
    )
    add_int8_arguments(parser)
    return parser


def add_int8_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the export to 8-bit integers."""
    parser.add_argument(
        "--int8",
        nargs="?",
        const="openvino",
        choices=("openvino", "onnxruntime"),
        metavar="ENGINE",
        help="write 8-bit integers for openvino (the default) or onnxruntime, with its own quantizer",
    )
    parser.add_argument(
        "--calibration",
        type=user_path,
        metavar="PATH",
        help="images for --int8: a folder of images, or a data set as for --data of `dfine train`, whose "
        "validation part is then used for AP; default: the checkpoint's training and validation data",
    )
    parser.add_argument(
        "--calibration-count",
        type=int,
        default=64,
        metavar="N",
        help="number of these images, spread evenly; default: 64",
    )
    parser.add_argument(
        "--max-ap-loss",
        type=float,
        default=0.01,
        metavar="AP",
        help="AP, 0 to 1, that --int8 may lose; default: 0.01",
    )


INT8_FLAGS = ("calibration", "calibration_count", "max_ap_loss")

CHECK_FLAGS = ("images", "count")


def check_int8(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> None:
    """Report flags that do not go together."""
    if arguments.int8 is None:
        for name in INT8_FLAGS:
            if getattr(arguments, name) != parser.get_default(name):
                parser.error(
                    f"--{name.replace('_', '-')} is only used with --int8"
                )
        return
    others = ("check", "simplify", "opset", "exporter", "sampling")
    for name in (*others, *CHECK_FLAGS):
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(
                f"--{name} is not used with --int8, which exports and compares in its own way"
            )


def check_comparison(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> None:
    """Report flags of `--check` without it."""
    if arguments.check:
        return
    for name in CHECK_FLAGS:
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name} is only used with --check")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    use_model(parser, arguments)
    check_int8(parser, arguments)
    check_comparison(parser, arguments)

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
        if arguments.int8 is not None:
            quantize(detector, arguments)
            return
        path = arguments.output or Path(arguments.resume).with_suffix(".onnx")
        options = {
            "batch_size": arguments.batch,
            "opset": arguments.opset,
            "exporter": arguments.exporter,
            "simplify": arguments.simplify,
            "sampling": arguments.sampling,
        }
        if not arguments.check:
            export_onnx(detector, path, **options)
            return
        images = images_for_check(detector, arguments.images, arguments.count)
        export_checked_onnx(detector, path, images, **options)

    run(command, arguments)


def quantize(detector: Detector, arguments: argparse.Namespace) -> None:
    """Write the int8 model that the arguments ask for."""
    from ..inference.calibration import calibration_data
    from ..inference.int8_export import Int8Settings, export_int8
    from ..inference.quantizers import SUFFIXES

    settings = Int8Settings(
        arguments.int8, arguments.max_ap_loss, arguments.batch
    )
    images, dataset = calibration_data(
        detector, arguments.calibration, arguments.calibration_count
    )
    suffix = f".int8{SUFFIXES[settings.engine]}"
    path = arguments.output or Path(arguments.resume).with_suffix(suffix)
    export_int8(detector, path, images, dataset, settings)
