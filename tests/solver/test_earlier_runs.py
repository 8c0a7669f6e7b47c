"""A new run in the folder of an earlier run overwrites nothing."""

import json

import pytest
import torch

from src.runtime.weight_files import write_tensor_file
from src.solver.earlier_runs import set_aside_earlier_run


@pytest.fixture
def folder(tmp_path):
    """The output folder of a run, with files of others."""
    (tmp_path / "checkpoints").mkdir()
    for name in (
        "best.pth",
        "last.pth",
        "last.previous.pth",
        "checkpoints/epoch0003.pth",
        "best.other_data.2.pth",
    ):
        write_tensor_file(
            tmp_path / name, {"name": name, "weight": torch.ones(1)}
        )
    (tmp_path / "log.txt").write_text(
        '{"epoch": 0, "stage": 1, "best_metric": "AP"}\n'
    )
    torch.save(
        {"weight": torch.ones(1)}, tmp_path / "checkpoints/epoch0004.pth"
    )
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "eval.json").write_text(json.dumps({"images": []}))
    return tmp_path


def files(folder) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_results_are_moved_and_files_of_others_stay(folder, caplog):
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    assert set_aside_earlier_run(folder) == folder / "earlier/1"
    foreign = {"checkpoints/epoch0004.pth", "notes.txt", "eval.json"}
    moved = set(before) - foreign
    assert files(folder) == foreign | {f"earlier/1/{name}" for name in moved}
    assert all(
        (folder / "earlier/1" / name).read_bytes() == before[name]
        for name in moved
    )
    assert (
        "its best.pth, last.pth, last.previous.pth, " in caplog.text
        and "earlier/1" in caplog.text
    )


def test_each_earlier_run_has_a_folder_of_its_own(folder):
    set_aside_earlier_run(folder)
    for number in (2, 3):
        write_tensor_file(folder / "best.pth", {"number": number})
        assert set_aside_earlier_run(folder) == folder / f"earlier/{number}"
    assert {path.name for path in (folder / "earlier").iterdir()} == {
        "1",
        "2",
        "3",
    }


@pytest.mark.parametrize(
    "content",
    [{}, {"log.txt": ""}, {"config.yml": "a: 1\n"}, {"best.pth": "not ours"}],
)
def test_without_results_nothing_is_moved(tmp_path, content, caplog):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    assert set_aside_earlier_run(tmp_path) is None
    assert files(tmp_path) == set(content) and not caplog.text


def test_a_log_alone_is_kept(tmp_path):
    (tmp_path / "log.txt").write_text(
        '{"epoch": 0, "stage": 1, "best_metric": "AP"}\n'
    )
    assert files(set_aside_earlier_run(tmp_path)) == {"log.txt"}
