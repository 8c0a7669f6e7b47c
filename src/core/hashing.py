"""Hashes that are the same in every process and in every version of Python."""

from __future__ import annotations

import hashlib


def hash64(content: bytes) -> int:
    """Return a number from -2**63 to 2**63 - 1 for some bytes (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
