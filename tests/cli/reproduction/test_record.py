"""Steps that are done are remembered with their inputs, also by a process that is killed."""

import json

import pytest

from src.cli.reproduction.record import Record
from src.core import ConfigError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results/reproduction.json"


def test_a_step_is_done_only_with_the_same_inputs(path):
    record = Record(path)
    assert not record.is_done("data", {"images": 3})
    record.add("data", {"images": 3, "pair": (1, 2)}, {"train": 24})
    for read in (record, Record(path)):
        assert read.is_done("data", {"images": 3, "pair": (1, 2)})
        assert not read.is_done("data", {"images": 4, "pair": (1, 2)})
        assert not read.is_done("data", {})
        assert not read.is_done("training", {"images": 3})
        assert read.notes("data") == {"train": 24}
        assert read.notes("training") == {}


def test_changed_inputs_are_named_with_both_values(path):
    record = Record(path)
    record.add("training", {"seed": 0, "epochs": 80})
    assert record.changes("training", {"seed": 3, "epochs": 80}) == [
        "seed was 0, is 3"
    ]
    assert record.changes("training", {"seed": 0}) == ["epochs was 80, is None"]
    assert record.changes("training", {"epochs": 80, "seed": 0}) == []
    assert record.changes("data", {"seed": 3}) == []


def test_a_machine_is_recorded_again_only_if_it_differs(path):
    record = Record(path)
    for gpus in (8, 8, 4, 8):
        record.add_session({"gpus": gpus})
    assert [s["gpus"] for s in Record(path).sessions] == [8, 4, 8]


@pytest.mark.parametrize(
    "content",
    [
        '{"written_by": "dfine_dinov3", "steps": ',
        '{"written_by": "dfine_dinov3", "steps": {"data": {"inputs": 3}}}',
        '{"written_by": "dfine_dinov3", "steps": []}',
    ],
)
def test_a_damaged_file_is_refused_with_advice(path, content):
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(
        ConfigError, match="reproduction.json cannot be used"
    ) as error:
        Record(path)
    assert "delete it to repeat all steps" in str(error.value)


def test_a_file_of_others_is_not_replaced(path):
    path.parent.mkdir()
    path.write_text(json.dumps({"steps": {}}))
    with pytest.raises(ConfigError, match="this project did not write it"):
        Record(path)
