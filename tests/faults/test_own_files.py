"""A run overwrites neither foreign files nor the results of an earlier run (K7)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fixtures.commands import write_tiny_config
from tests.fixtures.processes import Ended
from tests.fixtures.slow import slow
from tests.fixtures.train_here import private_copy, train_here
from tests.fixtures.trained_tiny import TRAINED

FOREIGN = {
    "config.yml": b"model: mine\n",
    "log.txt": b"what I did today\n",
    "best.pth": None,
    "last.previous.pth": b"PK\x03\x04 not a checkpoint",
    "images.train.npz": b"PK\x03\x04 arrays",
    "checkpoints/epoch0001.pth": None,
}
"""Names of results, with a content that somebody else wrote; None for a checkpoint of another program."""


@pytest.fixture
def config(tiny_data, tmp_path) -> Path:
    return write_tiny_config(tmp_path, tiny_data, epochs=1)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The output folder that the configuration names."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(*arguments: str | Path, text: str) -> Ended:
    ended = train_here(*arguments)
    assert ended.code == 2 and text in ended.err, ended.err
    assert ended.err.count("error[") == 1 and "Traceback" not in ended.err
    return ended


def write_foreign(path: Path, content: bytes | None) -> None:
    path.parent.mkdir(exist_ok=True)
    if content is None:
        torch.save({"model": {"weight": torch.ones(2)}}, path)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_somebody_else_in_the_output_folder_is_not_replaced(
    config, folder, name
):
    write_foreign(folder / name, FOREIGN[name])
    before = contents(folder)
    refused(
        "-c",
        config,
        text=f"{name} would be replaced, but this project did not write it",
    )
    if name != "last.previous.pth":  # which -r auto would read
        refused("-c", config, "-r", "auto", text=f"{name} would be replaced")
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {".dfine.lock", "run_status.json"}


@pytest.mark.parametrize("name", ["config.yml", "log.txt", "best.pth"])
def test_a_link_is_neither_followed_nor_replaced(
    config, folder, tmp_path, name
):
    target = tmp_path / "elsewhere"
    target.write_bytes(b"")
    (folder / name).symlink_to(target)
    refused("-c", config, text=f"{name} would be replaced")
    assert (folder / name).is_symlink() and target.read_bytes() == b""


def test_a_lock_that_is_a_link_is_not_followed(config, folder, tmp_path):
    target = tmp_path / "elsewhere"
    target.write_text("precious")
    (folder / ".dfine.lock").symlink_to(target)
    refused(
        "-c",
        config,
        text=".dfine.lock cannot be used as a lock: it is a symbolic link",
    )
    assert target.read_text() == "precious"


@pytest.mark.parametrize(
    "link",
    [Path.hardlink_to, Path.symlink_to, None],
    ids=["hard", "symbolic", "same"],
)
def test_the_weights_that_a_run_starts_from_are_not_replaced_by_its_own(
    config, folder, tmp_path, link
):
    best = folder / "best.pth"
    best.write_bytes(TRAINED.read_bytes())
    given = best
    if link is not None:
        given = tmp_path / "start.pth"
        link(given, best)
    refused(
        "-c",
        config,
        "-t",
        given,
        text=f"-t names {given}, which this command would replace by its result {best}",
    )
    assert best.read_bytes() == TRAINED.read_bytes()


def test_labels_called_eval_json_survive_an_evaluation(tiny_data, tmp_path):
    """The output folder is that of the labels, and the labels have the name of a result."""
    data = private_copy(tiny_data, tmp_path / "data")
    labels = (data.folder / "val.json").rename(data.folder / "eval.json")
    before = labels.read_bytes()
    config, update = (
        write_tiny_config(tmp_path, data),
        f"val_dataloader.dataset.ann_file={labels}",
    )
    arguments = [
        "-c",
        config,
        f"--output-dir={data.folder}",
        "--test-only",
        "-r",
        TRAINED,
        "-u",
        update,
    ]
    refused(*arguments, text="eval.json would be replaced")
    assert labels.read_bytes() == before


def test_an_evaluation_replaces_the_one_before(config, folder):
    for _ in range(2):
        ended = train_here("-c", config, "--test-only", "-r", TRAINED)
        assert ended.code == 0, ended.err
    assert json.loads((folder / "eval.json").read_text())["AP"] > 0


def test_a_status_file_of_somebody_else_is_left_as_it_is(config, folder):
    (folder / "run_status.json").write_text('{"mine": 1}')
    ended = train_here("-c", config, "--test-only", "-r", TRAINED)
    assert (
        ended.code == 0
        and "run_status.json was not written by this project"
        in ended.out + ended.err
    )
    assert (folder / "run_status.json").read_text() == '{"mine": 1}'


def test_temporary_files_of_others_stay_and_our_own_leftovers_go(
    config, folder
):
    theirs = [
        "best.pth.tmp.1",
        ".best.pth.tmp.1234",
        "x.tmp.gz",
        ".notes.12-abcdef.dfine-tmp",
        ".dfine-tmp",
    ]
    for name in theirs:
        (folder / name).write_text("mine")
    leftover = folder / ".best.pth.999999-0123abcd.dfine-tmp"
    leftover.write_text("half")
    linked = folder / ".last.pth.999999-0123abcd.dfine-tmp"
    linked.symlink_to(folder / theirs[0])
    assert train_here("-c", config).code == 0
    assert all((folder / name).read_text() == "mine" for name in theirs)
    assert not leftover.exists() and linked.is_symlink()


def test_a_new_run_in_the_folder_of_another_one_is_refused(config, folder):
    assert train_here("-c", config, "--seed=1").code == 0
    before = contents(folder)
    ended = refused(
        "-c", config, "--seed=2", text="holds another run (best.pth"
    )
    assert "--overwrite, which moves its results to" in ended.err
    assert contents(folder) == before, "its status is unchanged, too"


@pytest.mark.slow
def test_a_new_run_in_the_folder_of_an_earlier_one_loses_nothing_of_it(
    config, folder
):
    assert train_here("-c", config, "--seed=1").code == 0
    names = {"best.pth", "last.pth", "log.txt", "config.yml"}
    before = {
        name: content
        for name, content in contents(folder).items()
        if name in names
    }
    assert set(before) == names
    ended = train_here("-c", config, "--seed=2", "--overwrite")
    assert (
        ended.code == 0
        and "contains an earlier run, which this run does not resume"
        in ended.out + ended.err
    )
    earlier = contents(folder / "earlier/1")
    assert {name: earlier[name] for name in names} == before
    assert (folder / "best.pth").read_bytes() != before["best.pth"]
    assert (
        train_here(
            "-c", config, "--seed=2", "-r", "auto", "-u", "epochs=1"
        ).code
        == 0
    )
    assert os.listdir(folder / "earlier") == [
        "1"
    ]  # a run that is resumed stays where it is


@pytest.fixture
def half(config, folder) -> Path:
    """The output folder of a run of two epochs after its first."""
    assert train_here("-c", config, "--seed=1", "-u", "epochs=2").code == 0
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "best.pth",
        *slow(
            "checkpoints/epoch0003.pth",
            "config.yml",
            "images.val.npz",
            "bad_batch.pth",
        ),
    ],
)
def test_a_file_of_somebody_else_is_not_replaced_by_a_run_that_is_resumed(
    config, half, name
):
    write_foreign(half / name, FOREIGN.get(name, b"mine"))
    before = (half / name).read_bytes()
    resume = [
        "-c",
        config,
        "-r",
        "auto",
        "--override",
        "-u",
        "epochs=3",
        "checkpoint_freq=1",
    ]
    refused(*resume, text=f"{name} would be replaced")
    assert (half / name).read_bytes() == before
    (half / name).unlink()
    if name != "best.pth":
        assert train_here(*resume).code == 0


@pytest.mark.parametrize("name", ["checkpoints", "pictures", "earlier"])
@pytest.mark.parametrize(
    "make",
    [Path.touch, lambda path: path.symlink_to("/tmp")],
    ids=["file", "link"],
)
def test_a_file_under_the_name_of_a_folder_is_refused_at_the_start(
    config, folder, name, make
):
    make(folder / name)
    refused(
        "-c",
        config,
        text=f"{name} is not a folder, and this run would write into it",
    )
    assert not (folder / "log.txt").exists()


@pytest.mark.slow
def test_a_file_that_a_new_run_starts_from_stays_where_it_is(
    config, folder, tmp_path
):
    assert train_here("-c", config, "--seed=1").code == 0
    kept = folder / "best.other_data.pth"
    (folder / "best.pth").rename(kept)
    assert (
        train_here("-c", config, "--seed=1", "--overwrite", "-t", kept).code
        == 0
    )
    assert kept.exists() and (folder / "earlier/1/last.pth").exists()


@pytest.mark.slow
def test_an_export_of_an_earlier_run_does_not_stay_beside_a_new_best_pth(
    config, folder
):
    assert train_here("-c", config, "--seed=1").code == 0
    (folder / "best.onnx").write_bytes(b"\x08\x08\n\x05dfine")
    assert train_here("-c", config, "--seed=1", "--overwrite").code == 0
    assert (folder / "earlier/1/best.onnx").exists() and not (
        folder / "best.onnx"
    ).exists()
    assert list((folder / "earlier/1/summary").iterdir())


def test_a_second_start_does_not_touch_the_status_of_the_run_that_holds_the_folder(
    config, folder
):
    status = {"status": "done", "exit_code": 0, "message": "done"}
    (folder / "run_status.json").write_text(json.dumps(status))
    (folder / ".dfine.lock").touch()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); fcntl.flock(f, 2); "
                "print(1, flush=True); time.sleep(600)"
            ),
            folder / ".dfine.lock",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        holder.stdout.readline()
        refused("-c", config, text="is in use by process")
        refused("-c", config, "-u", "epoch=3", text="unknown key 'epoch'")
        assert json.loads((folder / "run_status.json").read_text()) == status
    finally:
        holder.kill()
        holder.wait()
    refused("-c", config, "-u", "epoch=3", text="unknown key 'epoch'")


def test_a_lock_that_is_not_a_file_is_refused(config, folder):
    os.mkfifo(folder / ".dfine.lock")
    refused("-c", config, text=".dfine.lock is not a regular file")


def test_a_path_that_is_too_long_is_named_in_one_line(config, tmp_path):
    refused(
        "-c",
        config,
        f"--output-dir={tmp_path}/{'x' * 300}",
        text="File name too long",
    )
