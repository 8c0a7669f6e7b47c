"""Limits of the server, which bound the memory and the time that a request can take."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import ConfigError
from ..data.dataset.decoding import MAX_PIXELS

MAX_SECONDS = 86_400
"""Maximum of a time limit: one day."""


@dataclass(frozen=True)
class Limits:
    """Limits of one server.

    Example:
        >>> Limits(queue=0)
        Traceback (most recent call last):
        ...
        src.core.errors.ConfigError: queue is 0, expected at least 1
    """

    max_bytes: int = 20_000_000
    """Maximum size of the body of a request. Base64 makes an image a third larger."""
    max_pixels: int = 50_000_000
    """Maximum number of pixels of an image; decoding takes up to 7 bytes for each."""
    queue: int = 32
    """Maximum number of requests that are received, wait or are computed; further ones are refused."""
    upload_seconds: float = 30
    """Maximum time for the headers, and for the body of a request to arrive."""
    seconds: float = 30
    """Maximum time from a complete request to its answer, including the time in the queue."""

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            ConfigError: if a limit is not positive, or too large.
        """
        for name in ("max_bytes", "max_pixels", "queue"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        for name in ("upload_seconds", "seconds"):
            value = getattr(self, name)
            if not 0 < value <= MAX_SECONDS:
                raise ConfigError(
                    f"{name} is {value:g}, expected more than 0 and at most {MAX_SECONDS}"
                )
        if self.max_pixels > MAX_PIXELS:
            raise ConfigError(
                f"max_pixels is {self.max_pixels}, expected at most {MAX_PIXELS}, beyond which images are "
                "not decoded"
            )
