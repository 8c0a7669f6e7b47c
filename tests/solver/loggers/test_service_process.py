"""The process of a service: each line once, in order, also after failures and a resume."""

import base64
import errno
import fcntl
import io
import json
import subprocess
import sys

import pytest
from PIL import Image

from src.solver.loggers import logged_state, service_process
from src.solver.loggers.logged_state import (
    LoggedState,
    forget_runs,
    only_process,
)
from src.solver.loggers.service import describe
from src.solver.loggers.service_process import Sender, serve
from tests.fixtures.golden import ROOT


class Service:
    """A service in memory, which fails while `errors` has errors."""

    def __init__(self) -> None:
        self.sent = []
        self.errors = []
        self.refused = set()
        self.finished = None

    def _take(self, *values):
        if self.errors:
            raise self.errors.pop(0)
        self.sent.append(values)

    def send_step(self, step, scalars):
        self._take("step", step)

    def send_epoch(self, epoch, step, scalars):
        self._take("epoch", epoch, step)

    def send_picture(self, epoch, name, file):
        if "picture" in self.refused:
            raise PermissionError("no access to the store of pictures")
        assert Image.open(file).size == (2, 1)
        self._take("picture", epoch, file.name)

    def send_result(self, metrics, report):
        self._take("result", metrics, report)

    def close(self, *, finished):
        self.finished = finished


@pytest.fixture
def told():
    return []


@pytest.fixture
def state(tmp_path):
    return LoggedState(tmp_path / "logger.x.json", {"written_by": "tests"})


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def sender(service, state, told, tmp_path):
    return Sender(lambda identifier: service, state, told.append, tmp_path)


def step(number):
    return {"kind": "step", "step": number, "scalars": {"loss": 1.0}}


def epoch(number):
    return {
        "kind": "epoch",
        "epoch": number,
        "step": 10 * number,
        "scalars": {},
    }


def picture(number):
    file = io.BytesIO()
    Image.new("RGB", (2, 1)).save(file, "PNG")
    png = base64.b64encode(file.getvalue()).decode()
    return {"kind": "picture", "epoch": number, "name": "training", "png": png}


LINES = [picture(1), step(5), step(10), epoch(1), picture(2), step(15)]


def test_lines_are_sent_in_their_order(sender, service):
    for line in LINES:
        sender.handle(line)
    sender.handle({"kind": "result", "metrics": {"AP": 0.5}, "report": None})
    assert service.sent == [
        ("picture", 1, "training_epoch0001.png"),
        ("step", 5),
        ("step", 10),
        ("epoch", 1, 10),
        ("picture", 2, "training_epoch0002.png"),
        ("step", 15),
        ("result", {"AP": 0.5}, None),
    ]


def test_a_resumed_run_sends_nothing_twice(sender, state, told, tmp_path):
    for line in LINES:
        sender.handle(line)
    resumed = Service()
    loaded = LoggedState.load(state.path, state.mark)
    again = Sender(lambda identifier: resumed, loaded, told.append, tmp_path)
    for line in [*LINES, step(20), epoch(2)]:
        again.handle(line)
    assert resumed.sent == [("step", 20), ("epoch", 2, 20)]


def test_what_fails_is_sent_later_in_its_order(
    sender, service, told, monkeypatch
):
    monkeypatch.setattr(service_process, "RETRY_SECONDS", 0)
    service.errors = [ConnectionError("https://me:pw@host is down\nmore")] * 2
    for line in (step(5), step(10), epoch(1)):
        sender.handle(line)
    assert service.sent == [("step", 5), ("step", 10), ("epoch", 1, 10)]
    failed = "ConnectionError: https://***@host is down"
    assert told == [{"failed": failed}] * 2


def test_a_service_that_fails_is_not_tried_for_every_line(sender, service):
    service.errors = [ConnectionError("down")]
    for number in range(5):
        sender.handle(step(number))
    assert service.sent == []
    sender.close(finished=True)
    assert [number for _, number in service.sent] == [0, 1, 2, 3, 4]
    assert service.finished is True


def test_a_line_that_never_works_does_not_block_the_others(
    sender, service, told, monkeypatch
):
    monkeypatch.setattr(service_process, "RETRY_SECONDS", 0)
    monkeypatch.setattr(service_process, "MOST_TRIES", 2)
    service.errors = [ValueError("bad name")] * 2
    for number in (1, 2, 3):
        sender.handle(step(number))
    sender.close(finished=True)
    assert [number for _, number in service.sent] == [2, 3]
    assert told[-1] == {"ended": True, "unsent": 1}


def test_pictures_that_fail_do_not_hold_up_values(sender, service, told):
    service.refused = {"picture"}
    for line in LINES:
        sender.handle(line)
    assert service.sent == [
        ("step", 5),
        ("step", 10),
        ("epoch", 1, 10),
        ("step", 15),
    ]
    sender.close(finished=True)
    problem = "PermissionError: no access to the store of pictures"
    assert told == [{"problem": problem}] * 2 + [{"ended": True, "unsent": 2}]


def test_the_last_try_is_not_announced_as_one_of_many(sender, service, told):
    service.errors = [ConnectionError("down")] * 2
    sender.handle(step(1))
    sender.close(finished=True)
    assert [list(line) for line in told] == [
        ["failed"],
        ["problem"],
        ["ended", "unsent"],
    ]


def test_a_service_that_cannot_be_opened_reports_what_was_not_sent(
    state, told, tmp_path
):
    def refuse(identifier):
        raise OSError("no network")

    sender = Sender(refuse, state, told.append, tmp_path)
    sender.handle(step(1))
    sender.handle(step(2))
    sender.close(finished=True)
    assert told[0] == {"failed": "OSError: no network"}
    assert told[-1] == {"ended": True, "unsent": 2}


def test_a_full_disk_does_not_send_a_line_again(
    sender, service, state, told, monkeypatch
):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "save", full)
    sender.handle(step(1))
    sender.handle(step(2))
    assert [number for _, number in service.sent] == [1, 2]
    assert "No space left" in told[0]["problem"]


def test_the_number_of_waiting_lines_is_limited(
    state, told, tmp_path, monkeypatch
):
    monkeypatch.setattr(service_process, "MOST_WAITING", 3)

    def refuse(identifier):
        raise OSError("no network")

    sender = Sender(refuse, state, told.append, tmp_path)
    for number in range(5):
        sender.handle(step(number))
    sender.close(finished=False)
    assert told[-1]["unsent"] == 5


def test_a_damaged_state_is_that_of_a_new_run(tmp_path):
    path = tmp_path / "logger.x.json"
    path.write_text("{")
    state = LoggedState.load(path, {})
    assert (state.identifier, state.step, state.epoch) == (None, -1, 0)


def test_a_new_run_forgets_the_runs_of_its_folder(state):
    state.save()
    forget_runs(state.path.parent)
    assert not state.path.exists()


def test_a_second_process_of_the_same_run_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(logged_state, "LOCK_SECONDS", 0.2)
    path = tmp_path / "logger.x.json"
    with (
        only_process(path),
        pytest.raises(TimeoutError, match="another process still sends"),
        only_process(path),
    ):
        pass
    with only_process(path):
        pass


def test_a_resumed_run_waits_as_long_as_the_killed_one_may_send():
    assert logged_state.LOCK_SECONDS > service_process.SECONDS_WITHOUT_TRAINER


def test_a_file_system_without_locks_is_not_waited_for(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    def wait(seconds):
        pytest.fail("a lock that never comes was waited for")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(logged_state.time, "sleep", wait)
    with only_process(tmp_path / "logger.x.json"):
        pass


def test_a_process_that_hangs_ends_after_its_trainer(tmp_path):
    code = (
        "import loggers.service_process as process\n"
        "process.SECONDS_WITHOUT_TRAINER = 0.2\n"
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "process.main()"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT / "src/solver",
        stdin=subprocess.PIPE,
    )
    line = json.dumps(opening(tmp_path, seconds_to_open=60)) + "\n"
    started.communicate(line.encode(), timeout=300)
    assert started.returncode == 1


def opening(folder, **config):
    return {
        "module": "tests.fixtures.services",
        "project": "p",
        "name": "n",
        "folder": str(folder),
        "config": config,
        "config_text": "",
        "state": str(folder / "logger.x.json"),
        "mark": {},
    }


def test_a_trainer_that_is_gone_leaves_a_run_that_is_not_finished(
    tmp_path, told
):
    from tests.fixtures.services import calls

    lines = [opening(tmp_path), step(1)]
    serve([json.dumps(line).encode() for line in lines], told.append)
    assert calls(tmp_path)[-1] == {"kind": "close", "finished": False}
    assert told[-1] == {"ended": True, "unsent": 0}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\nb"), "ValueError: a"),
        (KeyError(), "KeyError()"),
        (OSError("token=abc"), "OSError: token=***"),
    ],
)
def test_an_error_is_described_in_one_line_without_secrets(error, text):
    assert describe(error) == text


def test_the_process_imports_neither_torch_nor_numpy():
    code = (
        "import loggers.service_process, loggers.mlflow_service, sys;"
        "import loggers.wandb_service, loggers.clearml_service;"
        "print({'torch', 'numpy', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "src/solver",
        capture_output=True,
        text=True,
    )
    assert done.stdout == "set()\n", done.stderr
