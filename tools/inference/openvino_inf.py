"""Find objects with OpenVINO. The code is in `src/cli/predict_openvino.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.predict_openvino import main

if __name__ == "__main__":
    main()
