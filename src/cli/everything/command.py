"""Measure the speed of everything that users wait for, in CPU time of one thread.

    # all rows, with synthetic images
    python tools/benchmark/everything.py

    # with images of your own, and the same work in another library
    python tools/benchmark/everything.py --data /path/to/bccd --peer ultralytics=/path/to/env/bin/python

    # some of the parts, and the figures as JSON
    python tools/benchmark/everything.py --only scoring start --json figures.json

The command prints the Markdown table of docs/performance.md: each figure with its target, and its CPU time in
yardsticks. A yardstick is a 1024 x 1024 float32 matrix product, timed in the same process. Every part runs in
a process of its own, on one thread, and takes up to two minutes. Ratios depend on the processor, which the
last lines name.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..common import parser_for, positive_integer, run, user_path
from .figures import INPUTS, Figure, Settings, yardstick_seconds

PARTS = {
    "engines": "a deployed detector in each engine, also with int8 (row 1)",
    "photos": "loading photos of 12 megapixels (row 2)",
    "mosaics": "loading with mosaics (row 3)",
    "scoring": "COCO metrics of 5,000 images (row 4)",
    "training": "training steps (rows 5 and 6)",
    "boxes": "loading images with 1,000 boxes (row 7)",
    "start": "the first prediction of a process (row 8)",
}
"""Modules of this package with a function `measure`, and what they measure."""

PEERS = ("ultralytics", "rfdetr", "hotcoco")
"""Libraries that can be measured too: scripts in tools/benchmark/peers."""

PEER_SCRIPTS = Path(__file__).resolve().parents[3] / "tools/benchmark/peers"

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(PARTS),
        default=list(PARTS),
        metavar="PART",
        help="parts to measure; default: all. "
        + "; ".join(f"{name}: {title}" for name, title in PARTS.items()),
    )
    parser.add_argument(
        "--data",
        type=user_path,
        metavar="DIR",
        help="folder with images/, train.json and val.json; default: synthetic images",
    )
    parser.add_argument(
        "--peer",
        nargs="+",
        action="extend",
        default=[],
        type=_peer,
        metavar="NAME=PYTHON",
        help="also measure this library with the interpreter of its environment: "
        + ", ".join(PEERS),
    )
    parser.add_argument(
        "--repeats",
        type=positive_integer,
        default=5,
        metavar="N",
        help="measured runs of each work; the least CPU time counts; default: 5",
    )
    parser.add_argument(
        "--json",
        type=user_path,
        metavar="FILE",
        help="also write the figures to this file",
    )
    return parser


def _peer(text: str) -> tuple[str, Path]:
    """Return the name and the interpreter of `NAME=PYTHON`."""
    name, _, python = text.partition("=")
    if name not in PEERS:
        raise argparse.ArgumentTypeError(
            f"{text}: expected NAME=PYTHON with one of the names {', '.join(PEERS)}"
        )
    # not resolved: the link in a virtual environment is what selects the environment
    path = Path(python).expanduser().absolute()
    return name, path


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    run(lambda: everything(arguments), arguments)


def everything(arguments: argparse.Namespace) -> list[Figure]:
    """Measure the parts, print the table, and return the figures."""
    from ...core.errors import ConfigError, DataError
    from ...runtime.log import say
    from ...runtime.own_files import prepare_report, write_report

    if arguments.json:
        prepare_report(arguments.json, "--json")
    if arguments.data is not None:
        for name in ("images", "train.json", "val.json"):
            if not (arguments.data / name).exists():
                raise DataError(
                    f"--data {arguments.data} has no {name}; expected a folder with images/, train.json and "
                    "val.json"
                )
    peers = dict(arguments.peer)
    for peer, python in peers.items():
        if not python.is_file():
            raise ConfigError(
                f"--peer {peer}={python}: the file does not exist, expected the Python interpreter of an "
                f"environment with {peer}"
            )
    parts: list[dict[str, Any]] = []
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            parts.append(_measured_apart(name, Path(folder), arguments))
            for peer, python in peers.items():
                parts.append(
                    _measured_in(peer, python, name, Path(folder), arguments)
                )
        say(f"measured: {name}")
    figures = []
    say("")
    say("| # | work | who | result | yardsticks | target | reached |")
    say("| --- | --- | --- | --- | --- | --- | --- |")
    for part in parts:
        for entry in part["figures"]:
            figure = Figure(**entry)
            figures.append(figure)
            say(table_row(figure, part["yardstick"]))
    say("")
    for line in machine_lines(parts):
        say(line)
    if arguments.json:
        write_report(arguments.json, {"parts": parts})
    return figures


def table_row(figure: Figure, yardstick: float) -> str:
    """Return a figure as a row of the Markdown table.

    Args:
        figure: the figure.
        yardstick: seconds of a yardstick in the process that measured it.
    """
    in_yardsticks = "-"
    if figure.cpu_seconds is not None:
        in_yardsticks = _short(figure.cpu_seconds / yardstick)
    target, reached = "-", "-"
    if figure.target is not None:
        bound = "at least" if figure.at_least else "at most"
        target = f"{bound} {figure.target:g}"
        reached = "yes" if figure.is_met else "no"
    cells = (
        str(figure.row),
        figure.work,
        figure.who,
        f"{_short(figure.value)} {figure.unit}",
        in_yardsticks,
        target,
        reached,
    )
    return f"| {' | '.join(cells)} |"


def _short(value: float) -> str:
    """Return a number with three digits, or all digits before the decimal point.

    >>> [_short(value) for value in (0.7512, 7.214, 112.4, 1253.0)]
    ['0.751', '7.21', '112', '1253']
    """
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def machine_lines(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines that name the processor, the versions, and the yardsticks of all processes."""
    import importlib.metadata
    import platform

    from ...runtime.processor import processor_name

    yardsticks = []
    for part in parts:
        if part["yardstick"] is not None:
            yardsticks.append(1000 * part["yardstick"])
    versions = []
    for package in ("torch", "onnxruntime", "openvino", "faster-coco-eval"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        versions.append(f"{package} {version}")
    return [
        f"processor: {processor_name()}, one thread",
        f"yardstick: {min(yardsticks):.1f} to {max(yardsticks):.1f} ms",
        f"Python {platform.python_version()}, {', '.join(versions)}",
    ]


def _measured_apart(
    name: str, folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Measure a part in a process of its own, so that the memory and caches of one do not affect another."""
    code = f"from {__package__}.command import measure_part; measure_part()"
    # the child imports this package in the same way as this process
    paths = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": paths}
    command = [sys.executable, "-c", code]
    return _answer(command, name, name, folder, arguments, environment)


def _measured_in(
    peer: str,
    python: Path,
    name: str,
    folder: Path,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Measure a part of another library in its environment, with the images that the own part used."""
    script = PEER_SCRIPTS / f"{peer}_figures.py"
    command = [str(python), str(script)]
    title = f"{name} of {peer}"
    environment = os.environ | ONE_THREAD
    return _answer(command, name, title, folder, arguments, environment)


def _answer(
    command: list[str],
    name: str,
    title: str,
    folder: Path,
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Run a process that gets its task as JSON on stdin, and read its figures from a file.

    Raises:
        ResourceError: if the process fails; its messages are on the terminal already.
    """
    from ...core.errors import ResourceError
    from ...core.paths import read_text

    result = folder / "figures.json"
    result.unlink(missing_ok=True)
    own_images = folder / INPUTS
    inputs = own_images if own_images.is_dir() else arguments.data
    task = {
        "part": name,
        "folder": str(folder),
        "data": str(arguments.data.absolute()) if arguments.data else None,
        "inputs": str(inputs) if inputs else None,
        "repeats": arguments.repeats,
        "result": str(result),
    }
    process = subprocess.run(
        command,
        input=json.dumps(task),
        text=True,
        env=environment,
        check=False,
    )
    if process.returncode or not result.is_file():
        raise ResourceError(
            f"measuring {title} failed (exit code {process.returncode}); the lines above say why. Choose "
            "other parts with --only"
        )
    return json.loads(read_text(result))


def measure_part() -> None:
    """Measure the part that stdin names, and write its figures; for processes that this command starts."""
    task = json.loads(sys.stdin.read())
    import torch

    from ...runtime.files import write_json

    torch.set_num_threads(1)
    module = importlib.import_module(f".{task['part']}", __package__)
    settings = Settings(
        folder=Path(task["folder"]),
        data=Path(task["data"]) if task["data"] else None,
        repeats=task["repeats"],
    )
    before = yardstick_seconds()
    figures = [asdict(figure) for figure in module.measure(settings)]
    yardstick = min(before, yardstick_seconds())
    answer = {"part": task["part"], "yardstick": yardstick, "figures": figures}
    write_json(Path(task["result"]), answer)
