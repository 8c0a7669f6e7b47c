"""Optional packages: imported where they are used, and one sentence if they are not installed."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from ..core.errors import ConfigError

TOOLS = "pip install -r tools/requirements.txt"
"""Installs what single tools need beyond the project itself."""

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""ONNX Runtime 1.32 and later report how they are used to Microsoft, from a thread of their own, unless this
is set before the import. Nothing that a user does here is reported to anybody unless they ask for it."""


ADVICE = {
    "cv2": f"videos and cameras need OpenCV: {TOOLS}",
    "fiftyone": "this tool needs FiftyOne, an optional extra: pip install fiftyone",
    "onnx": f"the export needs onnx: {TOOLS}",
    "onnxruntime": "ONNX files need ONNX Runtime: pip install onnxruntime (or onnxruntime-gpu)",
    "onnxscript": f"the export needs onnxscript: {TOOLS}",
    "onnxsim": "--simplify needs onnxslim or onnxsim: pip install onnxslim",
    "openvino": "OpenVINO is not installed: pip install openvino",
    "tensorrt": "TensorRT is not installed: pip install tensorrt (10.6 or later)",
    "wandb": "use_wandb is true but wandb is not installed; pip install wandb, or set use_wandb: False",
}
"""For each optional module, the message for a user who has not installed it."""


def import_optional(name: str, advice: str | None = None) -> ModuleType:
    """Import a package that only some commands need.

    Args:
        name: name of the module.
        advice: message if it is not installed, with the command that installs it; None takes that of
            `ADVICE`.

    Raises:
        ConfigError: if it is not installed, or needs a package that is not.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        needs = f" ({name} needs {error.name})" if error.name not in (None, name) else ""
        raise ConfigError(f"{ADVICE[name] if advice is None else advice}{needs}") from None
