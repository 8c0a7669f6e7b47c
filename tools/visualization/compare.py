"""Draw predictions beside the ground truth. The code is in `src/cli/compare.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.compare import main

if __name__ == "__main__":
    main()
