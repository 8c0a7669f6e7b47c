"""Write an HTML report about a checkpoint on labelled images.

    # on the validation data that the checkpoint names
    dfine report runs/train

    dfine report best.pth --images test/ --annotations test.json --output a.html

The report has AP, curves, confusions, sizes, the threshold and the worst images. It is one page that
needs no network and no other file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .common import (
    add_detector_arguments,
    add_labelled_images_arguments,
    add_model_argument,
    detector_from,
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
    add_detector_arguments(parser)
    add_labelled_images_arguments(parser)
    parser.add_argument(
        "--output",
        type=user_path,
        help="output file; default: report.html beside the checkpoint",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="minimum score; default: the checkpoint's, as for predictions",
    )
    parser.add_argument(
        "--worst",
        type=int,
        default=12,
        help="number of images with the most errors to show; default: 12",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    use_model(parser, arguments)

    def command() -> None:
        from ..core.errors import ConfigError
        from ..inference.detector_evaluation import (
            evaluate_detector,
            open_labelled_images,
        )
        from ..inference.evaluation_report import write_report
        from ..runtime.files import prepare_output_dir
        from ..runtime.own_files import refuse_foreign

        use_run_folder(arguments)
        path = arguments.output or Path(arguments.resume).parent / "report.html"
        if path.suffix != ".html":
            raise ConfigError(
                f"the page is called {path.name}, expected a name that ends with .html"
            )
        refuse_foreign([path], "choose another --output")
        detector = detector_from(arguments)
        dataset = open_labelled_images(
            detector, arguments.images, arguments.annotations
        )
        prepare_output_dir(path.parent)
        evaluation = evaluate_detector(
            detector, dataset, batch_size=arguments.batch_size
        )
        write_report(
            evaluation,
            detector,
            path,
            threshold=arguments.threshold,
            worst=arguments.worst,
        )

    run(command, arguments)
