"""Requests to a running server: answers, refusals and limits."""

import base64
import http.client
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette")

from src.core.errors import NumericsError
from tests.fixtures.served import (
    FORM,
    JSON,
    StubDetector,
    answer_of,
    form,
    png,
    serving,
)


def base64_png(width=20, height=10) -> str:
    return base64.b64encode(png(width, height)).decode()


@pytest.fixture
def stub():
    return StubDetector()


def test_a_json_request_gets_the_detections(stub):
    with serving(stub) as server:
        answer = server.post_json(image=base64_png(), threshold=0.25)
    assert answer.status == 200
    took = answer.content.pop("milliseconds")
    assert took >= 0
    assert answer.content == {
        "model": 1,
        "threshold": 0.25,
        "width": 20,
        "height": 10,
        "detections": [
            {
                "box": [1.0, 2.0, 5.0, 7.0],
                "score": 0.5,
                "label": 0,
                "category_id": 7,
                "name": "cat",
            }
        ],
    }
    assert stub.calls == [{"shape": (3, 10, 20), "threshold": 0.25}]


def test_a_form_gets_the_same_detections_as_json(stub):
    with serving(stub) as server:
        answer = server.post(form(image=png(), threshold="0.25"), FORM)
        other = server.post_json(image=base64_png(), threshold=0.25)
    answer.content.pop("milliseconds")
    other.content.pop("milliseconds")
    assert answer.content == other.content


def test_without_a_threshold_the_one_of_the_model_is_used_and_told(stub):
    with serving(stub) as server:
        answer = server.post_json(image=base64_png())
    assert answer.content["threshold"] == 0.4
    assert stub.calls[0]["threshold"] is None


def test_the_second_model_is_asked_by_its_number(stub):
    second = StubDetector()
    with serving(stub, second) as server:
        answer = server.post_json(image=base64_png(), model=2)
        refused = server.post_json(image=base64_png(), model=3)
    assert answer.content["model"] == 2
    assert (len(stub.calls), len(second.calls)) == (0, 1)
    assert refused.status == 422
    assert refused.content == {"error": "model is 3, expected 1 or 2"}


@pytest.mark.parametrize(
    ("body", "kind", "status", "text"),
    [
        (b"{", JSON, 422, "not valid JSON"),
        (b"\xff\xfe", JSON, 422, "not valid JSON"),
        (b"[" * 100_000, JSON, 422, ""),
        (b"{}", JSON, 422, "missing required field `image`"),
        (b'{"image": "@@"}', JSON, 422, "invalid base64"),
        (b'{"image": "file:///etc/passwd"}', JSON, 422, "invalid base64"),
        (b'{"image": "", "url": "http://a"}', JSON, 422, "field `url`"),
        (b'{"image": ""}', JSON, 422, "the image is empty (0 bytes)"),
        (b'{"image": "aGVsbG8="}', JSON, 422, "not a JPEG"),
        (b'{"image": "", "threshold": 2}', JSON, 422, "field threshold"),
        (b'{"image": "", "threshold": NaN}', JSON, 422, "not valid JSON"),
        (b'{"image": "", "model": 0}', JSON, 422, "field model"),
        (b"abc", "text/plain", 415, "'text/plain', expected application/json"),
        (b"abc", "", 415, "expected application/json"),
        (b"abc", FORM, 422, "the form cannot be read"),
        (b"abc", "multipart/form-data", 422, "boundary"),
        (form(picture=b"abc"), FORM, 422, "no file in the field image"),
        (form(image="/etc/passwd"), FORM, 422, "no file in the field image"),
        (form(image=b"abc", threshold="high"), FORM, 422, "field threshold"),
        (form(image=b"abc", url="http://a"), FORM, 422, "field `url`"),
    ],
)
def test_an_unusable_request_is_refused_with_one_sentence(
    stub, body, kind, status, text
):
    with serving(stub) as server:
        answer = server.post(body, kind)
        assert server.post_json(image=base64_png()).status == 200
    assert answer.status == status
    assert set(answer.content) == {"error"}
    assert text.lower() in answer.content["error"].lower()
    assert "\n" not in answer.content["error"]
    assert len(stub.calls) == 1


def test_settings_in_the_address_are_refused_because_they_are_not_used(stub):
    with serving(stub) as server:
        body = form(image=png())
        answer = server.ask(
            "POST", "/predict?threshold=0.9", body, {"Content-Type": FORM}
        )
    assert answer.status == 422
    assert "address" in answer.content["error"]


def test_a_body_beyond_the_limit_is_refused_whether_its_size_is_declared_or_not(
    stub,
):
    parts = (b"x" * 10_000 for _ in range(100))
    with serving(stub, max_bytes=100_000) as server:
        declared = server.post(b"x" * 1_000_000, JSON)
        chunked = server.ask("POST", "/predict", parts, {"Content-Type": JSON})
        assert server.post_json(image=base64_png()).status == 200
    for answer in (declared, chunked):
        assert answer.status == 413
        assert "more than 100000 bytes" in answer.content["error"]
        assert answer.headers["connection"] == "close"


def test_a_client_that_waits_for_permission_is_refused_before_it_sends(stub):
    with serving(stub, max_bytes=1000) as server, server.connect() as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n"
            b"Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_arrive_is_refused_in_time(stub):
    with (
        serving(stub, upload_seconds=0.2) as server,
        server.connect() as client,
    ):
        client.sendall(
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n"
            b"Content-Type: application/json\r\n\r\n{"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 408")
        assert server.service.places.taken == 0


def test_headers_that_do_not_arrive_end_the_connection(stub):
    with serving(stub, upload_seconds=0.2) as server:
        for start in (b"", b"POST /predict HT", b"GET / HTTP/1.1\r\nHost:"):
            with server.connect() as client:
                client.sendall(start)
                assert client.recv(1000) == b""
        with server.connect() as client:  # the second request of a connection
            client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            received = b""
            while not received.endswith(b"}"):
                received += client.recv(1000)
            assert received.startswith(b"HTTP/1.1 200")
            client.sendall(b"GET /hea")
            assert client.recv(1000) == b""


def test_a_connection_can_wait_between_requests_longer_than_within_one(stub):
    with serving(stub, upload_seconds=0.2) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for _ in range(3):
            connection.request("GET", "/health")
            assert answer_of(connection.getresponse()).status == 200
            own = connection.sock
            time.sleep(0.3)
        assert connection.sock is own  # it was not opened again
        connection.close()


def test_headers_in_time_do_not_limit_a_prediction(stub):
    stub.gate.clear()
    with serving(stub, upload_seconds=0.2) as server:
        threading.Timer(0.6, stub.gate.set).start()
        assert server.post_json(image=base64_png()).status == 200


def test_a_client_that_ends_while_it_sends_leaves_its_place(stub):
    with serving(stub, queue=1) as server:
        with server.connect() as client:
            client.sendall(
                b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n"
                b"Content-Type: application/json\r\n\r\n{"
            )
            server.wait_for(lambda: server.service.places.taken == 1)
        server.wait_for(lambda: server.service.places.taken == 0)
        assert server.post_json(image=base64_png()).status == 200


def test_requests_beyond_the_queue_are_asked_to_come_back(stub):
    stub.gate.clear()
    places = 3
    with (
        serving(stub, queue=places) as server,
        ThreadPoolExecutor(places) as pool,
    ):
        waiting = []
        for _ in range(places):
            waiting.append(pool.submit(server.post_json, image=base64_png()))
        server.wait_for(lambda: server.service.places.taken == places)
        # a body that the connection cannot buffer, so that it must be read for the answer to arrive
        refused = server.post(b"x" * 5_000_000, JSON)
        healthy = server.ask("GET", "/health")
        stub.gate.set()
        answers = [one.result() for one in waiting]
        server.wait_for(lambda: server.service.places.taken == 0)
        later = server.post_json(image=base64_png())
    assert refused.status == 503
    assert refused.headers["retry-after"] == "1"
    assert "requests in progress, 3, is reached" in refused.content["error"]
    assert healthy.status == 200
    assert [answer.status for answer in answers] == [200] * places
    assert later.status == 200


def test_a_prediction_that_takes_too_long_is_answered_and_keeps_its_place(stub):
    stub.gate.clear()
    with serving(stub, seconds=0.2, queue=2) as server:
        answer = server.post_json(image=base64_png())
        assert answer.status == 503
        assert "not predicted within 0.2 s" in answer.content["error"]
        assert server.service.places.taken == 1
        waiting = server.post_json(image=base64_png())
        assert waiting.status == 503
        # the second one had not begun, so it is dropped
        server.wait_for(lambda: server.service.places.taken == 1)
        time.sleep(0.2)
        sick = server.ask("GET", "/health")
        assert sick.status == 503
        assert "running for more than 0.4 s" in sick.content["error"]
        stub.gate.set()
        server.wait_for(lambda: server.service.places.taken == 0)
        assert server.ask("GET", "/health").status == 200
        assert server.post_json(image=base64_png()).status == 200
    assert len(stub.calls) == 2


def test_errors_of_the_server_are_told_apart_from_those_of_the_client(
    stub, caplog
):
    with serving(stub) as server:
        stub.error = NumericsError("boxes of the image are NaN")
        nan = server.post_json(image=base64_png())
        stub.error = MemoryError()
        memory = server.post_json(image=base64_png())
        stub.error = KeyError("secret")
        bug = server.post_json(image=base64_png())
        stub.error = None
        assert server.post_json(image=base64_png()).status == 200
    assert (nan.status, nan.content["error"]) == (
        500,
        "boxes of the image are NaN",
    )
    assert memory.status == 503
    assert bug.status == 500
    assert "secret" not in str(bug.content)
    assert "secret" in caplog.text


def test_a_failed_device_makes_the_server_unhealthy(stub):
    with serving(stub) as server:
        stub.error = RuntimeError("CUDA error: unspecified launch failure")
        assert server.post_json(image=base64_png()).status == 503
        assert server.ask("GET", "/health").status == 503


def test_pages_of_other_sites_cannot_use_the_server(stub):
    with serving(stub) as server:
        body = form(image=png())
        headers = {"Sec-Fetch-Site": "cross-site"}
        answer = server.post(body, FORM, **headers)
        headers = {"Sec-Fetch-Site": "same-origin"}
        own = server.post(body, FORM, **headers)
    assert (answer.status, own.status) == (403, 200)
    assert "access-control-allow-origin" not in own.headers


def test_models_are_described_without_paths(stub):
    with serving(stub) as server:
        about = server.ask("GET", "/models").content
    assert about["models"] == [
        {
            "model": 1,
            "name": "run1/best.pth",
            "threshold": 0.4,
            "input_size": [32, 48],
            "classes": [
                {
                    "label": 0,
                    "category_id": 7,
                    "name": "cat",
                    "colour": "#00a0ff",
                }
            ],
        }
    ]
    assert about["max_bytes"] == 20_000_000


def test_metrics_count_requests_by_status(stub):
    with serving(stub) as server:
        server.post_json(image=base64_png())
        server.post_json(image=base64_png())
        server.post(b"{", JSON)
        metrics = server.ask("GET", "/metrics")
    lines = metrics.content.splitlines()
    assert metrics.headers["content-type"].startswith("text/plain")
    assert 'dfine_requests_total{status="200"} 2.0' in lines
    assert 'dfine_requests_total{status="422"} 1.0' in lines
    assert 'dfine_detections_total{model="1"} 2.0' in lines
    assert 'dfine_prediction_seconds_count{model="1"} 2.0' in lines
    assert "dfine_request_seconds_count 3.0" in lines
    assert "dfine_requests_in_progress 0.0" in lines
    assert "process_resident_memory_bytes" in metrics.content


def test_the_page_needs_nothing_from_elsewhere(stub):
    with serving(stub) as server:
        page = server.ask("GET", "/")
        parts = ("/page.js", "/page.css", "/texts.js", "/boxes.js")
        for part in parts:
            answer = server.ask("GET", part)
            assert answer.status == 200
            assert "//" not in answer.content.replace("// ", "")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith(
        "default-src 'self'"
    )
    assert "http" not in page.content


def test_unknown_addresses_and_methods_name_what_exists(stub):
    with serving(stub) as server:
        for method, path, status in (
            ("GET", "/../etc/passwd", 404),
            ("GET", "/page/index.html", 404),
            ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
            ("GET", "/predict", 405),
            ("DELETE", "/", 405),
        ):
            answer = server.ask(method, path)
            assert answer.status == status
            assert "expected /, /predict (POST)" in answer.content["error"]
            allowed = answer.headers.get("allow", "")
            assert ("POST" in allowed) == ((status, path) == (405, "/predict"))
            assert ("GET" in allowed) == ((status, path) == (405, "/"))


@pytest.mark.parametrize("path", [b"/predict?a=1", b"/nothing"])
def test_a_malformed_host_is_not_an_error_of_the_server(stub, path):
    with serving(stub) as server, server.connect() as client:
        client.sendall(
            b"POST " + path + b" HTTP/1.1\r\nHost: [a\r\n"
            b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1", "1e400"])
def test_a_threshold_of_a_form_is_a_number_from_0_to_1(stub, value):
    with serving(stub) as server:
        answer = server.post(form(image=png(), threshold=value), FORM)
    assert answer.status == 422
    assert "threshold" in answer.content["error"]


def test_what_is_not_http_is_refused(stub):
    with serving(stub) as server, server.connect() as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 400")


def test_a_server_that_ends_answers_the_requests_that_it_has(stub):
    stub.gate.clear()
    with serving(stub) as server, ThreadPoolExecutor(4) as pool:
        waiting = []
        for _ in range(4):
            waiting.append(pool.submit(server.post_json, image=base64_png()))
        server.wait_for(lambda: server.service.places.taken == 4)
        server.server.should_exit = True
        server.wait_for(lambda: not _listens(server.port))
        stub.gate.set()
        answers = [one.result() for one in waiting]
    assert [answer.status for answer in answers] == [200] * 4


def test_a_second_ctrl_c_answers_the_running_requests_without_their_result(
    stub, caplog
):
    stub.gate.clear()
    with serving(stub) as server, ThreadPoolExecutor(2) as pool:
        waiting = []
        for _ in range(2):
            waiting.append(pool.submit(server.post_json, image=base64_png()))
        server.wait_for(lambda: server.service.places.taken == 2)
        server.server.should_exit = True
        server.server.force_exit = True
        answers = [one.result() for one in waiting]
        stub.gate.set()
    for answer in answers:
        assert answer.status == 503
        assert answer.content == {"error": "the server is ending"}
    assert "Traceback" not in caplog.text
    assert len(stub.calls) == 1  # the one that waited is dropped


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
