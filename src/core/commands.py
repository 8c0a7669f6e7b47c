"""Names of this project's commands, as a user of a clone or of the installed package types them."""

from __future__ import annotations

from .package_configs import configs_folder

_IN_A_CLONE = {
    "check": "tools/dataset/check.py",
    "convert": "tools/dataset/convert.py",
    "export": "tools/deployment/export_onnx.py",
}


def is_installed() -> bool:
    """Return whether this is the installed package, which has neither train.py nor tools/."""
    return configs_folder().parent.joinpath("cli", "main.py").is_file()


def command_name(name: str) -> str:
    """Return what runs a command: "dfine check", or in a clone "tools/dataset/check.py".

    Args:
        name: check, convert or export.
    """
    return f"dfine {name}" if is_installed() else _IN_A_CLONE[name]
