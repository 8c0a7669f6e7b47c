"""Remove passwords, tokens and keys from what is sent to a service or logged. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_SECRET_NAME = re.compile(
    r"(?i)(secret|passw|passphrase|credential|authorization|(api|access|private)[_-]?key|"
    r"(^|[_.-])(auth|pwd)($|[_.-]))"
)
"""Name of a setting whose texts and numbers are secrets."""

_TOKEN_NAME = re.compile(
    r"(?i)((access|auth|refresh)[_-]?token|(^|[_-])token($|[_-]))"
)
"""Name of a setting whose text is a secret; a number is a size. `num_tokens` is not one."""

_IN_ADDRESS = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s'\"]+@")
"""User and password, which may contain "@", in an address such as `https://user:password@host`."""

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
        name: name of the setting, behind that of a mapping which is secret as a whole.
    """
    is_secret = _SECRET_NAME.search(name) is not None
    if isinstance(value, Mapping):
        outer = f"{name}." if is_secret else ""
        return {
            key: without_secrets(item, f"{outer}{key}")
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(item, name) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if is_secret:
        return HIDDEN
    if not isinstance(value, str):
        return value
    if _TOKEN_NAME.search(name):
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
