"""Reproduce the COCO figures of a model. The code is in `src/cli/reproduce.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.cli.reproduce import main

if __name__ == "__main__":
    main()
