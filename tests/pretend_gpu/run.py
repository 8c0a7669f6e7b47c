"""Run a command of the project on pretended GPUs.

    python tests/pretend_gpu/run.py --report report.json train.py -c CONFIG
    torchrun --nproc_per_node=2 tests/pretend_gpu/run.py --devices 2 train.py -c CONFIG

The report lists operations, the estimated number of kernels, host-device synchronizations and results in half
precision, each by file and line. Of several ranks, each writes its own: report.rank1.json.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.pretend_gpu import runtime  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--devices", type=int, default=1, help="number of GPUs")
    parser.add_argument(
        "--capability",
        type=int,
        default=90,
        help="compute capability times ten; below 80 there is no bf16",
    )
    parser.add_argument(
        "--memory-gb", type=float, default=80.0, help="memory of each GPU"
    )
    parser.add_argument("--report", type=Path, help="JSON file to write")
    parser.add_argument("command", help="script of the project")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if not runtime.is_preloaded():
        environment = runtime.preloaded(
            arguments.devices, arguments.capability, arguments.memory_gb
        )
        command = [sys.executable, *sys.argv]
        os.execve(sys.executable, command, environment)
    from tests.pretend_gpu.session import recording

    report = arguments.report
    if report is not None and "RANK" in os.environ:
        report = report.with_suffix(f".rank{os.environ['RANK']}.json")
    sys.argv = [arguments.command, *arguments.arguments]
    with recording(report):
        runpy.run_path(arguments.command, run_name="__main__")


if __name__ == "__main__":
    main()
