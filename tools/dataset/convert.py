"""Convert a data set to COCO. The code is in `src/cli/convert.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.convert import main

if __name__ == "__main__":
    main()
