"""Find objects with a checkpoint. The code is in `src/cli/predict.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.predict import main

if __name__ == "__main__":
    main()
