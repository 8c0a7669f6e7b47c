"""Write smaller copies of large Objects365 images. The code is in `src/cli/resize_obj365.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.resize_obj365 import main

if __name__ == "__main__":
    main()
