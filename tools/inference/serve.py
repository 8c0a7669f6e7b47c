"""Serve one or two detectors over HTTP. The code is in `src/cli/serve.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.serve import main

if __name__ == "__main__":
    main()
