"""Run the application until a signal: bind, serve, finish the running requests, end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..core.errors import ConfigError, ResourceError
from ..runtime.hangup import without_ignored_hangup
from ..runtime.log import logger, say
from .app import Service

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

MAX_CONNECTIONS = 512
"""Connections that the system keeps before they are accepted."""

IDLE_SECONDS = 5
"""Time after which a connection without a request is closed."""


class Server(uvicorn.Server):
    """A server that ends normally after a signal; uvicorn's own would send the signal to itself again."""

    should_exit: bool
    force_exit: bool

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Make signals end the server while the body runs; only the main thread can do so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._end)
            for number in without_ignored_hangup(SIGNALS)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, number: int, frame: Any) -> None:
        """Stop accepting requests at the first signal; end at once at a second Ctrl-C."""
        if self.should_exit and number == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


class TimedProtocol(H11Protocol):
    """HTTP/1.1 with a time limit for the headers of a request; uvicorn has none."""

    header_seconds = 30.0

    def connection_made(self, transport: Any) -> None:
        """Start the time of the first request."""
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._watch_headers()

    def data_received(self, data: bytes) -> None:
        """Start the time of a request with its first byte, and stop it with its last header."""
        super().data_received(data)
        if self._waits_for_headers():
            self._watch_headers()
        else:
            self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time."""
        self._stop_watching()
        super().connection_lost(exc)

    def _waits_for_headers(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch_headers(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(
                self.header_seconds, self._close_if_waiting
            )

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close_if_waiting(self) -> None:
        self._deadline = None
        if self._waits_for_headers() and not self.transport.is_closing():
            self.transport.close()


def serve(service: Service, host: str, port: int) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C, then finish the running requests.

    Args:
        service: the application.
        host: address or name of this machine to listen on.
        port: port; 0 takes a free one, which is reported.

    Raises:
        ConfigError: if the address cannot be used.
        ResourceError: if a prediction does not end after the signal.
        KeyboardInterrupt: after a second Ctrl-C, which does not wait for the running requests.
    """
    listener = listen(host, port)
    if not _is_loopback(listener):
        logger.warning(
            "%s can be reached from other machines, and everybody who reaches it can use it: put a proxy "
            "with access control in front of it",
            host,
        )
    server = make_server(service)
    say(f"serving on {address_of(listener)} (Ctrl-C ends)")
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        waits = 0.0 if server.force_exit else service.limits.seconds
        has_ended = service.worker.close(waits)
    if server.force_exit:
        raise KeyboardInterrupt
    if not has_ended:
        raise ResourceError(
            f"a prediction did not end within {service.limits.seconds:g} s after the signal, and was left"
        )
    say("all requests are finished")


def make_server(service: Service) -> Server:
    """Return the server of an application, which `run` starts."""
    limits = service.limits
    protocol = type(
        "_Protocol",
        (TimedProtocol,),
        {"header_seconds": limits.upload_seconds},
    )
    config = uvicorn.Config(
        service.app(),
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",  # not a line for each request that is not HTTP
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(
            limits.upload_seconds + limits.seconds + 1
        ),
    )
    return Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        ConfigError: if the port is in use or reserved, or the address is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port is {port}, expected 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.create_server(
            address[:2], family=family, backlog=MAX_CONNECTIONS
        )
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; choose others with --host and --port"
        ) from None
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the address of the page."""
    host, port = listener.getsockname()[:2]
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}"


def _is_loopback(listener: socket.socket) -> bool:
    return ip_address(listener.getsockname()[0]).is_loopback
