"""Write an HTML report about a checkpoint on labelled images.

    # on the validation data that the checkpoint names
    python tools/visualization/report.py -r output/demo/best.pth

    python tools/visualization/report.py -r best.pth --images test/ --annotations test.json --output a.html

The report has AP, curves, confusions, sizes, the threshold and the worst images. It is one page that
needs no network and no other file.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.common import (
    add_checkpoint_arguments,
    add_labelled_images_arguments,
    detector_from,
    parser_for,
    run,
    user_path,
)


def main() -> None:
    parser = parser_for(__doc__)
    add_checkpoint_arguments(parser)
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
    arguments = parser.parse_args()

    def command() -> None:
        from src.core.errors import ConfigError
        from src.inference.detector_evaluation import (
            evaluate_detector,
            open_labelled_images,
        )
        from src.inference.evaluation_report import write_report
        from src.runtime.files import prepare_output_dir
        from src.runtime.own_files import refuse_foreign

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


if __name__ == "__main__":
    main()
