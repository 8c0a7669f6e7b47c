"""Convert a checkpoint to this project's form. The code is in `src/cli/convert_weights.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.cli.convert_weights import main

if __name__ == "__main__":
    main()
