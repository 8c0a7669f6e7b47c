"""Measure the latency of TensorRT engines. The code is in `src/cli/trt_benchmark.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.trt_benchmark import main

if __name__ == "__main__":
    main()
