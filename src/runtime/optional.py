"""Import optional packages where they are used, with a clear message if they are not installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

from ..core.errors import ConfigError

IS_IN_TREE = __name__.startswith("src.")

TOOLS = (
    "pip install -r tools/requirements.txt"
    if IS_IN_TREE
    else 'pip install "dfine-dinov3[tools]"'
)
"""Command that installs the packages that only some tools need, in the source tree and otherwise."""

SERVE = TOOLS if IS_IN_TREE else 'pip install "dfine-dinov3[serve]"'
"""Command that installs the packages of the server."""

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""Disables the telemetry of ONNX Runtime 1.32 and later, which otherwise reports its usage to Microsoft. It
must be set before the import. This project sends no usage data anywhere unless the user asks for it."""
os.environ.setdefault("NNCF_CI", "1")
"""Disables the telemetry of NNCF, which has no switch of its own and leaves it out where this variable is
set. It must be set before the import."""


ADVICE = {
    "cv2": f"videos and cameras need OpenCV: {TOOLS}",
    "fiftyone": "this tool needs FiftyOne, an optional extra: pip install fiftyone",
    "nncf": f"int8 for OpenVINO needs NNCF: {TOOLS}",
    "onnx": f"the export needs onnx: {TOOLS}",
    "onnxruntime": "ONNX files need ONNX Runtime: pip install onnxruntime (or onnxruntime-gpu)",
    "onnxscript": f"the export needs onnxscript: {TOOLS}",
    "onnxsim": "--simplify needs onnxslim or onnxsim: pip install onnxslim",
    "openvino": "OpenVINO is not installed: pip install openvino",
    "pandas": "to_dataframe() needs pandas: pip install pandas",
    "supervision": "to_supervision() needs supervision: pip install supervision",
    "tensorrt": "TensorRT is not installed: pip install tensorrt (10.6 or later)",
}
"""Message for each optional module that is not installed."""


def is_installed(package: str) -> bool:
    """Return whether a package can be imported; it is not imported.

    A folder of the same name without Python files, such as `wandb/` with the files of earlier runs, is not a
    package, although Python can import it.
    """
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # it was removed from this process
        return False
    return found is not None and found.origin is not None


def import_optional(name: str, advice: str | None = None) -> ModuleType:
    """Import a package that only some commands need.

    Args:
        name: name of the module.
        advice: message if the module is not installed, with the command that installs it; None uses `ADVICE`.

    Raises:
        ConfigError: if the module, or a package that it needs, is not installed.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        message = ADVICE[name] if advice is None else advice
        if error.name not in (None, name):
            message += f" ({name} needs {error.name})"
        raise ConfigError(message) from None
    spec = getattr(module, "__spec__", None)
    if spec is not None and spec.origin is None:
        # a folder of this name without Python files
        raise ConfigError(ADVICE[name] if advice is None else advice)
    return module
