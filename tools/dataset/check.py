"""Find all faults of a data set. The code is in `src/cli/check.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.check import main

if __name__ == "__main__":
    main()
