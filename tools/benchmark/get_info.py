"""Count the parameters and operations of a model. The code is in `src/cli/info.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.info import main

if __name__ == "__main__":
    main()
