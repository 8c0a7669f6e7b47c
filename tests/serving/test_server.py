"""Addresses that the server can listen on."""

import pytest

pytest.importorskip("starlette")

from src.core.errors import ConfigError
from src.serving.server import address_of, listen


def test_a_port_in_use_is_named():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=f"port {port}: .*in use.*--port"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_named(port):
    with pytest.raises(ConfigError, match=f"port is {port}"):
        listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match="cannot listen on 192.0.2.1"):
        listen("192.0.2.1", 0)
