"""Measure latency and throughput of a detector in several engines. The code is in `src/cli/benchmark.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.benchmark import main

if __name__ == "__main__":
    main()
