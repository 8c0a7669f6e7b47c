"""Hashes that are the same in every process and in every version of Python."""

from __future__ import annotations

import hashlib


def hash64(content: bytes) -> int:
    """Return the 64-bit BLAKE2b hash of some bytes as a signed integer."""
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
