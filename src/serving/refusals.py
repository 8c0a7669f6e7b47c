"""Refusals of requests: a status code and one sentence, which the client gets as JSON."""

from __future__ import annotations

from starlette.responses import JSONResponse

RETRY_SECONDS = 1
"""Value of `Retry-After`: an image takes about a second at most."""


class Refused(Exception):
    """A request gets no prediction; the text says why."""

    def __init__(self, status: int, message: str) -> None:
        """Store the status code and the sentence."""
        super().__init__(message)
        self.status = status


def refusal(status: int, message: str, *, close: bool = False) -> JSONResponse:
    """Return the response `{"error": message}`.

    Args:
        status: status code; 503 adds `Retry-After`.
        message: one sentence.
        close: end the connection, because the body of the request was not read.
    """
    headers = {}
    if status == 503:
        headers["Retry-After"] = str(RETRY_SECONDS)
    if close:
        headers["Connection"] = "close"
    return JSONResponse({"error": message}, status, headers)
