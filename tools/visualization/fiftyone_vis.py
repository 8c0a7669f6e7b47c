"""Show predictions in the FiftyOne app. The code is in `src/cli/fiftyone_app.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.fiftyone_app import main

if __name__ == "__main__":
    main()
