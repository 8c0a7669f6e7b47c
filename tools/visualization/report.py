"""Write an HTML report about a checkpoint. The code is in `src/cli/report.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.report import main

if __name__ == "__main__":
    main()
