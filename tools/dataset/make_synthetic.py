"""Generate a small synthetic data set. The code is in `src/cli/make_synthetic.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.make_synthetic import main

if __name__ == "__main__":
    main()
