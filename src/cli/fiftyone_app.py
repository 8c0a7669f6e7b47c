"""Show predictions beside the ground truth in the FiftyOne app (optional: pip install fiftyone).

    # on the validation data that the checkpoint names
    python tools/visualization/fiftyone_vis.py -r output/demo/best.pth

    python tools/visualization/fiftyone_vis.py -r best.pth --images test/ --annotations test.json

Every detection has its score and whether it matches an object at IoU 0.5: filter by them in the app.
"""

import argparse
from collections.abc import Sequence

from .common import (
    add_detector_arguments,
    add_labelled_images_arguments,
    add_model_argument,
    detector_from,
    parser_for,
    run,
    use_model,
)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    add_model_argument(parser)
    add_detector_arguments(parser)
    add_labelled_images_arguments(parser)
    parser.add_argument(
        "--name",
        default="dfine",
        help="name of the data set in FiftyOne, replaced if it exists; default: dfine",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="minimum score; default: the checkpoint's",
    )
    parser.add_argument(
        "--port", type=int, default=5151, help="port of the app; default: 5151"
    )
    parser.add_argument(
        "--no-launch",
        action="store_true",
        help="store the data set and exit; open it later with: fiftyone app launch NAME",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    use_model(parser, arguments)

    def command() -> None:
        from ..inference.detector_evaluation import (
            evaluate_detector,
            open_labelled_images,
        )
        from ..inference.fiftyone_export import to_fiftyone
        from ..runtime.optional import import_optional

        detector = detector_from(arguments)
        dataset = open_labelled_images(
            detector, arguments.images, arguments.annotations
        )
        import_optional(
            "fiftyone"
        )  # after all arguments were looked at, before anything costly
        evaluation = evaluate_detector(
            detector, dataset, batch_size=arguments.batch_size
        )
        data_set = to_fiftyone(
            evaluation,
            arguments.name,
            detector.threshold
            if arguments.threshold is None
            else arguments.threshold,
        )
        if not arguments.no_launch:
            import_optional("fiftyone").launch_app(
                data_set, port=arguments.port
            ).wait()

    run(command, arguments)
