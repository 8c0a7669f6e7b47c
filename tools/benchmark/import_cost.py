"""Measure the CPU time of importing this package, relative to importing torch.

    python tools/benchmark/import_cost.py
    python tools/benchmark/import_cost.py --package dfine_dinov3 --pairs 20

Each pair is two new Python processes, one after the other, so that other load on the machine affects both
alike. The ratio is the median over the pairs. The target is at most 1.4.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--package",
        default="src",
        help="name of the package: src, or dfine_dinov3 if it is installed; default: src",
    )
    parser.add_argument(
        "--pairs", type=int, default=10, help="number of pairs; default: 10"
    )
    arguments = parser.parse_args()
    if arguments.pairs < 1:
        parser.error(f"--pairs is {arguments.pairs}, expected at least 1")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    statements = {
        "import torch": [],
        f"import {arguments.package}": [],
        f"from {arguments.package} import Detector": [],
    }
    for statement in statements:
        cpu_seconds(statement)  # fills the file cache
    for _ in range(arguments.pairs):
        for statement, seconds in statements.items():
            seconds.append(cpu_seconds(statement))
    yardstick = statements["import torch"]
    print("| statement | CPU s | times torch |\n| --- | --- | --- |")
    for statement, seconds in statements.items():
        ratios = [own / torch for own, torch in zip(seconds, yardstick)]
        print(
            f"| `{statement}` | {statistics.median(seconds):.2f} | {statistics.median(ratios):.2f} |"
        )


def cpu_seconds(statement: str) -> float:
    """Return the CPU time of a Python process that runs a statement."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    subprocess.run(
        [sys.executable, "-c", statement],
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    user = after.ru_utime - before.ru_utime
    return user + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    main()
