"""`dfine val` evaluates exported models on a data set."""

import pytest

from src.cli import val
from tests.fixtures.run_here import call_here


@pytest.fixture(scope="module")
def evaluated(exported, tiny_data):
    """A function that evaluates the exported model with more arguments."""
    pytest.importorskip(
        "onnxruntime",
        reason="ONNX Runtime is not installed (tools/requirements.txt)",
    )

    def call(*arguments):
        data = (
            ("--data", tiny_data.folder) if arguments[:1] != ("bare",) else ()
        )
        others = [word for word in arguments if word != "bare"]
        return call_here(
            lambda: val.main([str(exported), *map(str, [*data, *others])]),
            "dfine val",
        )

    return call


def test_an_exported_model_has_the_twelve_metrics(evaluated):
    ended = evaluated()
    assert ended.code in (0, None), ended.err
    lines = dict(line.split() for line in ended.out.splitlines()[-12:])
    assert list(lines)[0] == "AP"
    assert 0.1 < float(lines["AP"]) <= 1


def test_an_exported_model_below_the_required_ap_has_exit_code_5(evaluated):
    ended = evaluated("--min-ap", "1")
    assert ended.code == 5
    assert "--min-ap requires at least 1" in ended.err
    assert "AP50" in ended.out


def test_an_exported_model_needs_data(evaluated):
    ended = evaluated("bare")
    assert ended.code == 2
    assert "--data is missing" in ended.err


def test_flags_of_checkpoints_are_refused_for_an_exported_model(evaluated):
    ended = evaluated("--output-dir", "somewhere")
    assert ended.code == 2
    assert "--output-dir is only used with checkpoints" in ended.err
