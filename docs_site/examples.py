"""Extension of griffe, which reads docstrings for the Python API.

A section `Example:` contains code, as `Examples:` does, and its code imports the installed package.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

PACKAGE = "dfine_dinov3"


class Examples(griffe.Extension):
    """Changes docstrings as the site shows them."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = obj.docstring.value
            text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
            text = re.sub(
                r"\b(?<=from )src\b|\bsrc(?=\.\w+\.\w)", PACKAGE, text
            )
            obj.docstring.value = text
