"""Find objects with an exported ONNX file. The code is in `src/cli/predict_onnx.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.cli.predict_onnx import main

if __name__ == "__main__":
    main()
