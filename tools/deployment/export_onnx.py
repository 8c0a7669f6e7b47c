"""Export a checkpoint to ONNX. The code is in `src/cli/export.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.export import main

if __name__ == "__main__":
    main()
