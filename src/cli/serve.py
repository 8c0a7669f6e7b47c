"""Try a detector in the browser, and predict over HTTP.

    dfine serve runs/train                    # http://127.0.0.1:8000
    dfine serve runs/train runs/train2        # compare two detectors
    dfine serve best.onnx --port 9000 --threshold 0.5

    curl -F image=@image.jpg http://127.0.0.1:8000/predict

Only this machine can connect, unless --host is given. SIGTERM or Ctrl-C ends the server after the running
requests. The packages of the extra `serve` are needed. docs/deployment.md describes the requests.
"""

import argparse
from collections.abc import Sequence

from .common import (
    CHECKPOINT_HELP,
    add_threads_argument,
    parser_for,
    positive_integer,
    positive_number,
    run,
)

ENGINES = ("torch", "onnx", "openvino", "tensorrt")
"""Keys of `ENDINGS` of `src/serving/models.py`, which is not imported before arguments are parsed."""

MAX_MODELS = 2
"""Number of detectors that the page can compare."""

PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
"""Packages of the extra `serve`."""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"one or two of: run folder, exported model, or {CHECKPOINT_HELP}",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 accepts other machines; default: 127.0.0.1",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8000,
        help="port to listen on; 0 takes a free one; default: 8000",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="engine; opens the exported file beside a checkpoint; default: that of the file",
    )
    parser.add_argument(
        "-d", "--device", help="cpu, cuda or cuda:N; default: CUDA if available"
    )
    add_threads_argument(parser)
    parser.add_argument(
        "--threshold",
        type=float,
        help="minimum score of requests without one; default: the checkpoint's",
    )
    parser.add_argument(
        "--max-megabytes",
        type=positive_number,
        default=20,
        metavar="MB",
        help="maximum size of a request; default: 20",
    )
    parser.add_argument(
        "--max-megapixels",
        type=positive_number,
        default=50,
        metavar="MP",
        help="maximum size of an image; default: 50",
    )
    parser.add_argument(
        "--queue",
        type=positive_integer,
        default=32,
        metavar="N",
        help="requests in progress at a time; further ones are answered with 503; default: 32",
    )
    parser.add_argument(
        "--upload-seconds",
        type=positive_number,
        default=30,
        metavar="S",
        help="time limit for a request to arrive; default: 30",
    )
    parser.add_argument(
        "--seconds",
        type=positive_number,
        default=30,
        metavar="S",
        help="time limit from a complete request to its answer; default: 30",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    if not arguments.models:
        parser.error("the following arguments are required: MODEL")
    if len(arguments.models) > MAX_MODELS:
        parser.error(
            f"{len(arguments.models)} models were given, expected one or two"
        )
    run(lambda: _serve(arguments), arguments)


def _serve(arguments: argparse.Namespace) -> None:
    """Open the detectors and serve them."""
    from ..runtime.optional import SERVE, import_optional
    from ..serving.models import file_for, open_models

    files = [file_for(model, arguments.engine) for model in arguments.models]
    for name in PACKAGES:
        import_optional(name, f"dfine serve needs {name}: {SERVE}")

    import torch

    from ..serving.app import Service
    from ..serving.limits import Limits
    from ..serving.server import serve

    limits = Limits(
        max_bytes=round(arguments.max_megabytes * 1_000_000),
        max_pixels=round(arguments.max_megapixels * 1_000_000),
        queue=arguments.queue,
        upload_seconds=arguments.upload_seconds,
        seconds=arguments.seconds,
    )
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    models = open_models(
        files,
        engine=arguments.engine,
        device=arguments.device,
        threads=arguments.threads,
        threshold=arguments.threshold,
    )
    serve(Service(models, limits), arguments.host, arguments.port)


if __name__ == "__main__":
    main()
