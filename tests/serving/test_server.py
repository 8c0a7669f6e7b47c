"""Addresses of the server, and signals that end it."""

import base64
import signal
import threading
import time

import pytest

pytest.importorskip("starlette")

import uvicorn

from src.core.errors import ConfigError
from src.serving.app import Service
from src.serving.limits import Limits
from src.serving.models import ServedModel
from src.serving.server import Server, address_of, listen, serve
from tests.fixtures.ports import free_port
from tests.fixtures.processes import run_fresh
from tests.fixtures.served import Running, StubDetector, png


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


def test_a_server_started_with_nohup_outlives_its_terminal():
    ended = run_fresh(receive_signals_after_nohup)
    assert ended.code == 0, ended.err


def receive_signals_after_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = Server(uvicorn.Config(None))
    with server.capture_signals():
        signal.raise_signal(signal.SIGHUP)
        assert not server.should_exit
        signal.raise_signal(signal.SIGTERM)
        assert server.should_exit


def test_a_second_ctrl_c_does_not_wait_for_a_prediction_that_does_not_end():
    ended = run_fresh(serve_until_ctrl_c_is_pressed_twice)
    assert ended.code == 0, ended.err


def serve_until_ctrl_c_is_pressed_twice() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stub = StubDetector()
    stub.gate.clear()
    service = Service([ServedModel(1, "a", stub)], Limits(seconds=600))
    port = free_port()
    server = Running(service, port, None)
    main = threading.get_ident()
    answers = []

    def ask() -> None:
        image = base64.b64encode(png()).decode()
        answers.append(server.post_json(image=image).status)

    def press_twice() -> None:
        server.wait_for(lambda: stub.calls)
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.3)
        signal.pthread_kill(main, signal.SIGINT)

    client = threading.Timer(0.5, ask)
    keys = threading.Thread(target=press_twice)
    client.start()
    keys.start()
    with pytest.raises(KeyboardInterrupt):
        serve(service, "127.0.0.1", port)  # one that waits answers with 200
    client.join()
    keys.join()
    assert answers == [503]
    stub.gate.set()
    assert service.worker.close(10)
