"""Write a checkpoint as an ONNX file that carries its classes, threshold and preprocessing, and check that both find the same.

    python tools/deployment/export_onnx.py -r output/demo/best.pth --check          # writes output/demo/best.onnx and best.json
    python tools/deployment/export_onnx.py -r best.pth --batch 4 --output four.onnx # a fixed batch
    python tools/deployment/export_onnx.py -r best.pth --batch 1 --exporter torchscript --opset 17   # for runtimes that need opset 17

With --check, images go through both; exit code 8 and the worst image if a box differs by more than a pixel or a score by more than 0.01.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.common import parser_for, run, user_path  # noqa: E402


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument(
        "-r",
        "--resume",
        required=True,
        metavar="FILE",
        help="best.pth, last.pth or a file of D-FINE's",
    )
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="configuration, only for checkpoints that hold none, as D-FINE's own",
    )
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FILE",
        help="default: the checkpoint's name with .onnx",
    )
    parser.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="in place of the size that the model was trained for",
    )
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument(
        "--batch", type=int, metavar="N", help="a fixed number of images at once"
    )
    batch.add_argument(
        "--dynamic",
        action="store_true",
        help="any number of images at once; the default",
    )
    parser.add_argument(
        "--opset",
        type=int,
        help="17 or above; default: 18, or 17 with --exporter torchscript",
    )
    parser.add_argument(
        "--exporter",
        choices=("dynamo", "torchscript"),
        default="dynamo",
        help="of torch; torchscript is deprecated and needs --batch",
    )
    parser.add_argument(
        "--simplify",
        action="store_true",
        help="pass the graph through onnxslim or onnxsim; off by default, it is not needed",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare the file with the checkpoint in ONNX Runtime",
    )
    parser.add_argument(
        "--images",
        type=user_path,
        metavar="DIR",
        help="images for --check; default: validation data that the checkpoint names, else drawn ones",
    )
    parser.add_argument(
        "--count", type=int, default=16, help="images for --check; default: 16"
    )
    arguments = parser.parse_args()

    def command() -> None:
        from src.core.errors import ExportError
        from src.inference import Detector
        from src.inference.agreement import check_agreement, images_for_check
        from src.inference.export import DISAGREES, UNCHECKED, export_onnx
        from src.runtime.log import logger
        from src.runtime.optional import import_optional

        detector = Detector.from_checkpoint(
            arguments.resume,
            device="cpu",
            config=arguments.config,
            input_size=arguments.input_size,
        )
        images = (
            images_for_check(detector, arguments.images, arguments.count)
            if arguments.check
            else None
        )
        if arguments.check:
            import_optional(
                "onnxruntime"
            )  # after all arguments were looked at, before anything is written
        path = export_onnx(
            detector,
            arguments.output or Path(arguments.resume).with_suffix(".onnx"),
            batch_size=arguments.batch,
            opset=arguments.opset,
            exporter=arguments.exporter,
            simplify=arguments.simplify,
        )
        if images is None:
            return
        try:
            check_agreement(detector, Detector.from_onnx(path, device="cpu"), *images)
        except ExportError as error:
            kept = path.replace(path.with_suffix(DISAGREES))
            path.with_suffix(".json").unlink()
            raise ExportError(
                f"{error}; the file is kept as {kept} to look into, not to use"
            ) from None
        except BaseException:
            path.replace(path.with_suffix(UNCHECKED))
            path.with_suffix(".json").unlink()
            logger.warning(
                "the check did not end; the file is kept as %s",
                path.with_suffix(UNCHECKED),
            )
            raise

    run(command, arguments)


if __name__ == "__main__":
    main()
