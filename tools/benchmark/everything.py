"""Measure the speed of everything that users wait for. The code is in `src/cli/everything/command.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.everything.command import main

if __name__ == "__main__":
    main()
