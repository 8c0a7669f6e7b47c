"""A new run in the folder of an earlier run overwrites nothing."""

import json

import pytest
import torch

from src.core.errors import ConfigError
from src.runtime.weight_files import write_tensor_file
from src.solver.earlier_runs import refuse_earlier_run, set_aside_earlier_run
from src.solver.writers import JsonLinesWriter, TableWriter


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


def test_the_folder_of_another_run_is_refused_with_what_to_do(folder):
    before = files(folder)
    with pytest.raises(ConfigError) as caught:
        refuse_earlier_run(folder)
    text = str(caught.value)
    assert f"{folder} holds another run (best.pth, last.pth" in text
    for advice in ("-r auto", "--output-dir", "--overwrite"):
        assert advice in text
    assert files(folder) == before


@pytest.mark.parametrize(
    "content", [{}, {"log.txt": ""}, {"config.yml": "a: 1\n"}]
)
def test_a_folder_without_results_is_not_refused(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    refuse_earlier_run(tmp_path)
    refuse_earlier_run(tmp_path / "missing")


def test_a_file_that_the_run_starts_from_is_not_another_run(tmp_path):
    start = tmp_path / "best.other_data.pth"
    write_tensor_file(start, {"weight": torch.ones(1)})
    refuse_earlier_run(tmp_path, [str(start), None])
    with pytest.raises(ConfigError, match="best.other_data.pth"):
        refuse_earlier_run(tmp_path)


def test_table_curves_and_report_move_with_the_run_they_belong_to(tmp_path):
    record = {"epoch": 0, "stage": 1, "best_metric": "AP", "AP": 0.5}
    JsonLinesWriter(tmp_path, 0).write_epoch(0, record)
    TableWriter(tmp_path, 1)
    page = '<meta name="generator" content="dfine_dinov3">'
    (tmp_path / "report.html").write_text(page)
    earlier = set_aside_earlier_run(tmp_path)
    names = {"log.txt", "results.csv", "curves.png", "report.html"}
    assert files(earlier) == names


def test_a_log_alone_is_kept(tmp_path):
    (tmp_path / "log.txt").write_text(
        '{"epoch": 0, "stage": 1, "best_metric": "AP"}\n'
    )
    assert files(set_aside_earlier_run(tmp_path)) == {"log.txt"}
