"""Compare variants of a training over several seeds. The code is in `src/cli/ablate.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.ablate import main

if __name__ == "__main__":
    main()
