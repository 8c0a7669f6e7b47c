"""The command `dfine serve` and its arguments."""

import sys
from unittest.mock import patch

import pytest

from src.cli import serve
from src.core.errors import CheckpointError
from tests.fixtures.run_here import run_here
from tests.fixtures.trained_tiny import TRAINED


def test_only_this_machine_can_connect_by_default():
    arguments = serve.make_parser().parse_args(["runs/train"])
    assert arguments.host == "127.0.0.1"


def test_three_models_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        serve.main(["a", "b", "c"])
    assert ended.value.code == 2
    assert "3 models were given, expected one or two" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-megabytes", "nan"),
        ("--max-megapixels", "inf"),
        ("--upload-seconds", "inf"),
        ("--seconds", "0"),
        ("--queue", "0"),
        ("--threads", "0"),
    ],
)
def test_a_limit_that_is_not_a_positive_number_is_named(flag, value, capsys):
    with pytest.raises(SystemExit) as ended:
        serve.main(["runs/train", flag, value])
    assert ended.value.code == 2
    assert f"argument {flag}: {value}: expected" in capsys.readouterr().err


def test_a_model_is_required(capsys):
    with pytest.raises(SystemExit) as ended:
        serve.main([])
    assert ended.value.code == 2
    assert "required: MODEL" in capsys.readouterr().err


@pytest.mark.parametrize("name", serve.PACKAGES)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name, monkeypatch
):
    for other in serve.PACKAGES:
        monkeypatch.setitem(sys.modules, other, sys)
    monkeypatch.setitem(sys.modules, name, None)
    ended = run_here("tools/inference/serve.py", TRAINED)
    assert ended.code == 2
    assert f"dfine serve needs {name}: pip install" in ended.err


def test_limits_in_megabytes_and_megapixels_reach_the_server(monkeypatch):
    pytest.importorskip("starlette")
    given = {}

    def keep(service, host, port):
        given.update(limits=service.limits, host=host, port=port)
        service.worker.close(10)

    with (
        patch("src.serving.server.serve", keep),
        patch("src.serving.models.open_models", lambda *_, **__: []),
    ):
        ended = run_here(
            "tools/inference/serve.py",
            TRAINED,
            *("--max-megabytes", "1.5", "--max-megapixels", "2"),
            *("--queue", "3", "--port", "0"),
        )
    assert ended.code == 0, ended.err
    assert given["limits"].max_bytes == 1_500_000
    assert given["limits"].max_pixels == 2_000_000
    assert given["limits"].queue == 3
    assert (given["host"], given["port"]) == ("127.0.0.1", 0)


def test_the_engines_are_those_of_the_server():
    from src.serving.models import ENDINGS

    assert tuple(ENDINGS) == serve.ENGINES


def test_a_missing_model_is_named():
    ended = run_here("tools/inference/serve.py", "nowhere/best.pth")
    assert ended.code == CheckpointError.exit_code
    assert "nowhere/best.pth does not exist" in ended.err
