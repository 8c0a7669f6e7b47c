"""Bodies of requests, within limits on bytes and time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from .limits import Limits
from .refusals import Refused

MAX_DISCARDED_BYTES = 256_000_000
"""Maximum size of a body that is read only to discard it, so that its client reads the answer."""


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises:
        Refused: 413 if it is too large, 408 if it does not arrive in time, 400 if the client ended before.
    """
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > limits.max_bytes:
        await discard_body(request, limits)
        raise _too_large(limits)
    try:
        return await asyncio.wait_for(
            _collected(request, limits), limits.upload_seconds
        )
    except asyncio.TimeoutError:
        raise Refused(
            408,
            f"the body of the request did not arrive within {limits.upload_seconds:g} s",
        ) from None
    except ClientDisconnect:
        raise Refused(400, "the client closed the connection") from None


async def discard_body(request: Request, limits: Limits) -> None:
    """Read a body without keeping it, within limits on bytes and time.

    A connection that is closed while its client still sends is reset, and the answer is lost. A client that
    waits for `100 Continue` sends nothing before it has the answer.
    """
    if "100-continue" in request.headers.get("expect", "").lower():
        return
    with contextlib.suppress(asyncio.TimeoutError, ClientDisconnect):
        await asyncio.wait_for(
            _discarded(request.stream()), limits.upload_seconds
        )


async def _collected(request: Request, limits: Limits) -> bytes:
    """Return the body; discard the rest of one that turns out to be too large."""
    body = bytearray()
    stream = request.stream()
    async for chunk in stream:
        body += chunk
        if len(body) > limits.max_bytes:
            body.clear()
            await _discarded(stream)
            raise _too_large(limits)
    return bytes(body)


async def _discarded(stream: AsyncIterator[bytes]) -> None:
    """Read what a client still sends."""
    count = 0
    async for chunk in stream:
        count += len(chunk)
        if count > MAX_DISCARDED_BYTES:
            return


def _too_large(limits: Limits) -> Refused:
    return Refused(
        413,
        f"the body of the request has more than {limits.max_bytes} bytes, which is the maximum",
    )
