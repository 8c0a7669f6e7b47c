"""Remove passwords, tokens and keys from what is sent to a service or logged. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_SECRET_NAME = re.compile(
    r"(?i)(secret|passw|passphrase|credential|api_?key|access_?key|private_?key|(^|_)(auth|pwd|token)($|_))"
)
"""Name of a setting whose text is a secret. `num_tokens` and numbers are not."""

_IN_ADDRESS = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s@'\"]+@")
"""User and password in an address, as in `https://user:password@host`."""

_IN_TEXT = re.compile(
    r"(?i)\b((?:[a-z_]*(?:secret|password|api_?key|access_?key|token)[a-z_]*)[\"']?\s*[=:]\s*[\"']?|bearer\s+)"
    r"[^\s\"'&,;]+"
)
"""A secret behind its name, as in `api_key=...` and `Bearer ...`."""


def without_secrets(value: Any, name: str = "") -> Any:
    """Return a copy of settings in which secrets are replaced by `***`.

    Example:
        >>> without_secrets({"api_key": "abc", "num_tokens": 4, "url": "http://me:pw@host/x"})
        {'api_key': '***', 'num_tokens': 4, 'url': 'http://***@host/x'}

    Args:
        value: settings; nested mappings and lists are copied.
        name: name of the setting.
    """
    if isinstance(value, Mapping):
        return {
            key: without_secrets(item, str(key)) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(item, name) for item in value]
    if not isinstance(value, str):
        return value
    if _SECRET_NAME.search(name):
        return HIDDEN
    return text_without_secrets(value)


def text_without_secrets(text: str) -> str:
    """Return a text, such as the message of an error, without the secrets that can be recognized.

    Example:
        >>> text_without_secrets("401 from https://me:pw@host/api?token=abc")
        '401 from https://***@host/api?token=***'
    """
    text = _IN_ADDRESS.sub(rf"\1{HIDDEN}@", text)
    return _IN_TEXT.sub(rf"\1{HIDDEN}", text)
