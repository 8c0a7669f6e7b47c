"""Check a machine before training on it. The code is in `src/cli/doctor.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.cli.doctor import main

if __name__ == "__main__":
    main()
