"""Count the kernels and the host-device synchronizations of one training step of a configuration.

    python tests/pretend_gpu/count.py -c configs/dfine/dfine_dinov3_s_coco.yml
    python tests/pretend_gpu/count.py -c configs/dfine/dfine_dinov3_s_coco.yml --ddp

No GPU is needed. The step is eager, in bf16, with random weights; images are small, because the counts do not
depend on their size. Synchronizations are observed; the number of kernels is an estimate from the operations.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.pretend_gpu import runtime  # noqa: E402
from tests.pretend_gpu.host import Host, Result  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", "--config", required=True)
    parser.add_argument("--batch", type=int, default=2, help="images per rank")
    parser.add_argument(
        "--phase", choices=("A", "B"), default="B", help="first or last phase"
    )
    parser.add_argument(
        "--ddp",
        action="store_true",
        help="two ranks with sync_bn; counts of one",
    )
    parser.add_argument(
        "--fp16", action="store_true", help="fp16 with a gradient scaler"
    )
    parser.add_argument("--lines", action="store_true", help="kernels by line")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    reason = runtime.missing()
    if reason:
        sys.exit(f"GPUs cannot be pretended: {reason}")
    ranks = 2 if arguments.ddp else 1
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder))
        results = host.call(
            "count",
            ranks=ranks,
            devices=ranks,
            capability=75 if arguments.fp16 else 90,
            config=arguments.config,
            batch=arguments.batch,
            phase=arguments.phase,
        )
        host.close()
    for result in results:
        if result.code:
            sys.exit(result.output)
    show(results[0], arguments.lines)


def show(result: Result, by_line: bool) -> None:
    """Print the counts of one rank."""
    report = result.value
    waits = report["synchronizations"]
    print(f"host-device synchronizations: {sum(row[-1] for row in waits)}")
    for place, reason, times in waits:
        print(f"  {times:5}  {place}: {reason}")
    kernels: Counter[str] = Counter()
    for place, number in report["kernels"].items():
        kernels[place if by_line else place.rpartition(":")[0] or place] += (
            number
        )
    print(f"estimated kernels: {kernels.total()}")
    for place, number in kernels.most_common():
        print(f"  {number:5}  {place}")
    if report["launches"]:
        print(f"kernels that were not computed: {report['launches']}")


if __name__ == "__main__":
    main()
