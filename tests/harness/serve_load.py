"""Load a server with concurrent clients, one request in twenty of which is bad or hostile.

    python tests/harness/serve_load.py                                    # 2,000 requests of 20 clients
    python tests/harness/serve_load.py --requests 20000 --clients 50 --model runs/train

`dfine serve` is started as a process of its own, with the small detector of the tests unless --model names
another one. Good requests are JSON or forms with images of several sizes, and each must get the detections
that its image gets alone. Bad requests are truncated JPEG files, decompression bombs, wrong types, bodies
that are too large, with or without a declared size, bodies and headers that do not arrive, invalid JSON,
wrong base64, addresses and paths instead of images, clients that disappear, and bytes that are not HTTP.
Each must get its refusal. An answer that is missing or wrong is lost.

The memory of the server must not grow by more than 20 MB after the first fifth of the requests. At the end,
SIGTERM is sent while requests are in progress: all of them must be answered, and the exit code must be 0.
Exit code 1 if one of these does not hold.
"""

import argparse
import base64
import http.client
import io
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.harness.service import black_png

GROWTH_MB = 20
"""Growth of the memory that is allowed after the first fifth of the requests."""

MAX_MB = 2
"""Limit of the server on the body of a request."""

UPLOAD_SECONDS = 2
"""Limit of the server on the time of an upload."""

BOUNDARY = "boundary-of-the-load"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
JSON = "application/json"
LATEST_REQUESTS = 12
"""Requests that are in progress when SIGTERM is sent."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", help="run folder or checkpoint; default: the tests'"
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument(
        "--bad", type=float, default=0.05, help="fraction of bad requests"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.requests < 100 or arguments.clients < 1:
        parser.error("expected at least 100 --requests and 1 of --clients")
    if not 0 <= arguments.bad <= 0.5:
        parser.error(f"--bad is {arguments.bad}, expected 0 to 0.5")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.model is None:
        arguments.model = ROOT / "tests/fixtures/trained_tiny.pth"
    server = start(arguments.model)
    try:
        load = Load(server, arguments)
        faults = load.run()
        faults += end_in_progress(server, load.good)
    finally:
        server.process.kill()
    for fault in faults[:10]:
        print(fault)
    sys.exit(1 if faults else 0)


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen, port: int) -> None:
        self.process = process
        self.port = port
        self.lock = threading.Lock()
        self.again = 0
        """Number of answers with 503."""

    def post(self, body, kind: str) -> tuple[int, dict]:
        """Return status and content of the answer, after waiting as long as the server asks to."""
        while True:
            connection = http.client.HTTPConnection(
                "127.0.0.1", self.port, timeout=60
            )
            content = body() if callable(body) else body
            try:
                connection.request(
                    "POST", "/predict", content, {"Content-Type": kind}
                )
                response = connection.getresponse()
                answer = json.loads(response.read())
            finally:
                connection.close()
            if response.status != 503:
                return response.status, answer
            with self.lock:
                self.again += 1
            time.sleep(float(response.headers["Retry-After"]))

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=60
        )
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", self.get("/metrics"), re.M)
        assert found is not None, name
        return float(found[1])

    def memory_mb(self) -> float:
        """Return the resident memory of the process."""
        return self.metric("process_resident_memory_bytes") / 1e6


def start(model) -> Server:
    """Start a server and return it when it listens."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        ROOT / "tools/inference/serve.py",
    ]
    command += [model, "-d", "cpu", "--port", "0", "--threads", "1"]
    command += ["--max-megabytes", str(MAX_MB)]
    command += ["--upload-seconds", str(UPLOAD_SECONDS)]
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        found = re.search(r"serving on http://127\.0\.0\.1:(\d+)", line)
        if found:
            # a full pipe would stop the server
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return Server(process, int(found[1]))
    raise SystemExit("the server did not start:\n" + "".join(lines))


class Load:
    """Clients, and what became of their requests."""

    def __init__(self, server: Server, arguments: argparse.Namespace) -> None:
        self.server = server
        self.arguments = arguments
        self.good = good_requests()
        self.bad = bad_requests()
        self.expected = {}
        for kind, (body, content_type) in self.good.items():
            status, answer = server.post(body, content_type)
            assert status == 200, answer
            self.expected[kind] = answer["detections"]
        self.lock = threading.Lock()
        self.todo = self._plan()
        self.counts: Counter = Counter()
        self.seconds: list[float] = []
        self.faults: list[str] = []
        self.sizes: list[float] = []

    def _plan(self) -> list[str]:
        rng = random.Random(self.arguments.seed)
        plan = []
        for _ in range(self.arguments.requests):
            kinds = self.bad if rng.random() < self.arguments.bad else self.good
            plan.append(rng.choice(list(kinds)))
        return plan

    def run(self) -> list[str]:
        """Send all requests, print the figures and return the faults."""
        began = time.monotonic()
        cpu_began = self.server.metric("process_cpu_seconds_total")
        clients = []
        for _ in range(self.arguments.clients):
            client = threading.Thread(target=self._client)
            client.start()
            clients.append(client)
        for client in clients:
            client.join()
        took = time.monotonic() - began
        bad = sum(self.counts[kind] for kind in self.bad)
        print(
            f"{sum(self.counts.values())} requests of {self.arguments.clients} clients in {took:.0f} s, "
            f"{len(self.seconds) / took:.1f} images a second"
        )
        kinds = ", ".join(f"{kind} {self.counts[kind]}" for kind in self.bad)
        print(f"bad requests: {bad} ({kinds})")
        print(f"lost or wrong answers: {len(self.faults)}")
        print(f"asked to come back (503): {self.server.again}")
        ordered = sorted(self.seconds)
        shown = []
        for percent in (50, 95, 99):
            value = ordered[int(len(ordered) * percent / 100)]
            shown.append(f"{percent} % {1000 * value:.0f} ms")
        print("time to an answer:", ", ".join(shown))
        cpu = self.server.metric("process_cpu_seconds_total") - cpu_began
        print(
            f"CPU time of the server: {1000 * cpu / len(self.seconds):.1f} ms an image"
        )
        print(
            "memory at each tenth:",
            *(f"{size:.0f}" for size in self.sizes),
            "MB",
        )
        grown = max(self.sizes[2:]) - max(self.sizes[:2])
        if grown > GROWTH_MB:
            self.faults.append(f"the memory grew by {grown:.0f} MB")
        self.server.get("/health")
        return self.faults

    def _client(self) -> None:
        """Send requests until there are none."""
        while True:
            with self.lock:
                if not self.todo:
                    return
                kind = self.todo.pop()
                self.counts[kind] += 1
                done = self.arguments.requests - len(self.todo)
                is_tenth = done * 10 // self.arguments.requests > len(
                    self.sizes
                )
                if is_tenth:
                    self.sizes.append(self.server.memory_mb())
            try:
                if kind in self.good:
                    fault = self._ask(kind)
                else:
                    fault = self.bad[kind](self.server)
            except Exception as error:
                fault = f"no answer: {type(error).__name__}: {error}"
            if fault is not None:
                with self.lock:
                    self.faults.append(f"{kind}: {fault}")

    def _ask(self, kind: str) -> str | None:
        """Send a good request; return what is wrong with the answer."""
        began = time.monotonic()
        status, answer = self.server.post(*self.good[kind])
        with self.lock:
            self.seconds.append(time.monotonic() - began)
        if status != 200:
            return f"{status} {answer}"
        return differences(answer["detections"], self.expected[kind])


def differences(found: list[dict], expected: list[dict]) -> str | None:
    """Return how detections differ; None if they do not."""
    if len(found) != len(expected):
        return f"{len(found)} detections instead of {len(expected)}"
    for one, other in zip(found, expected):
        offsets = [abs(a - b) for a, b in zip(one["box"], other["box"])]
        if one["name"] != other["name"] or max(offsets) > 0.01:
            return f"{one} instead of {other}"
    return None


def good_requests() -> dict[str, tuple[bytes, str]]:
    """Return bodies and types of requests that all have different detections."""
    import numpy as np
    from PIL import Image

    from src.data.dataset.synthetic import draw_scene

    requests = {}
    for number in range(6):
        scene = Image.fromarray(
            draw_scene(np.random.default_rng(number), 64)[0]
        )
        file = io.BytesIO()
        if number % 2:
            scene.resize((1600, 1200)).save(file, "jpeg")
        else:
            scene.save(file, "png")
        content = file.getvalue()
        requests[f"form {number}"] = form(content), FORM
        requests[f"json {number}"] = as_json(content), JSON
    return requests


def bad_requests() -> dict:
    """Return functions by kind, which send a bad request and return what is wrong with the answer."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "jpeg")
    jpeg = file.getvalue()
    bomb = black_png(20_000)
    large = bytes(3 * MAX_MB * 1_000_000)

    def chunks():
        for _ in range(3 * MAX_MB):
            yield bytes(1_000_000)

    return {
        "truncated JPEG": refused(422, form(jpeg[: len(jpeg) // 2]), FORM),
        "decompression bomb": refused(422, form(bomb), FORM),
        "bomb as JSON": refused(422, as_json(bomb), JSON),
        "no image": refused(422, as_json(b"hello" * 1000), JSON),
        "wrong type": refused(415, jpeg, "image/jpeg"),
        "large body": refused(413, large, FORM),
        "large body in chunks": refused(413, chunks, FORM),
        "invalid JSON": refused(422, b'{"image": ', JSON),
        "deep JSON": refused(422, b'{"image": ' + b"[" * 100_000, JSON),
        "wrong base64": refused(422, b'{"image": "@@@"}', JSON),
        "address": refused(422, b'{"url": "http://localhost/"}', JSON),
        "path": refused(422, b'{"image": "/etc/passwd"}', JSON),
        "form without end": refused(422, form(jpeg)[:-30], FORM),
        "slow body": slow_body,
        "slow headers": slow_headers,
        "lost client": lost_client,
        "no HTTP": no_http,
    }


def refused(status: int, body, kind: str):
    """Return a function that sends a body and expects one sentence with a status code."""

    def send(server: Server) -> str | None:
        found, answer = server.post(body, kind)
        if found != status or set(answer) != {"error"}:
            return f"{found} {answer} instead of {status}"
        return None

    return send


START = (
    b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
)


def slow_body(server: Server) -> str | None:
    """Send a byte from time to time."""
    with connected(server) as client:
        client.sendall(START + b"Content-Length: 100000\r\n\r\n")
        client.settimeout(0.2)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                received = client.recv(1000)
            except TimeoutError:
                client.sendall(b" ")
            else:
                if received.startswith(b"HTTP/1.1 503"):  # there was no place
                    return None
                return expect(received, b"HTTP/1.1 408")
    return "no answer to a slow body"


def slow_headers(server: Server) -> str | None:
    """Send half of the headers; the server closes the connection."""
    with connected(server) as client:
        client.sendall(START)
        return expect(client.recv(1000), b"")


def lost_client(server: Server) -> str | None:
    """Close the connection in the middle of a body."""
    with connected(server) as client:
        client.sendall(START + b"Content-Length: 100000\r\n\r\n{")
    return None


def no_http(server: Server) -> str | None:
    """Begin TLS."""
    with connected(server) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        return expect(client.recv(1000), b"HTTP/1.1 400")


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def expect(received: bytes, start: bytes) -> str | None:
    """Return what is wrong with the first bytes of an answer; no bytes mean a closed connection."""
    is_right = received.startswith(start) if start else not received
    return None if is_right else f"{received[:80]!r} instead of {start!r}"


def end_in_progress(server: Server, good: dict) -> list[str]:
    """Send SIGTERM while requests are in progress; return the faults."""
    answers: list[int] = []
    body, kind = good["form 1"]
    gate = threading.Barrier(LATEST_REQUESTS + 1)

    def ask() -> None:
        # the last bytes are sent when all connections are in the server
        with connected(server) as client:
            client.sendall(
                f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
            )
            client.sendall(body[:-10])
            gate.wait()
            gate.wait()
            client.sendall(body[-10:])
            answers.append(int(client.recv(100)[9:12] or 0))

    threads = [threading.Thread(target=ask) for _ in range(LATEST_REQUESTS)]
    for thread in threads:
        thread.start()
    gate.wait()
    while server.metric("dfine_requests_in_progress") < LATEST_REQUESTS:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    gate.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    code = server.process.wait(60)
    took = time.monotonic() - began
    answered = answers.count(200)
    print(
        f"SIGTERM with {LATEST_REQUESTS} requests in progress: {answered} answered, exit code {code} after "
        f"{took:.1f} s"
    )
    if answered == LATEST_REQUESTS and code == 0:
        return []
    return [f"SIGTERM: {answers}, exit code {code}"]


def form(content: bytes) -> bytes:
    """Return a form with a file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def as_json(content: bytes) -> bytes:
    return json.dumps({"image": base64.b64encode(content).decode()}).encode()


if __name__ == "__main__":
    main()
