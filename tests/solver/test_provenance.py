"""Provenance stored in checkpoints."""

import subprocess
from pathlib import Path

from torch import nn

from src import __version__
from src.detection.weight_file import WeightFile
from src.solver.provenance import code_version, provenance


class Filled(nn.Module):
    licence_note = "Weights by Somebody: Some License"


def test_everything_is_plain_so_that_a_checkpoint_can_be_read_without_running_code():
    origin = provenance(nn.Linear(1, 1), None)
    assert {key: type(value) for key, value in origin.items()} == {
        "commit": str,
        "command": str,
        "torch": str,
        "started": str,
        "licences": list,
    }


def test_the_licence_of_published_weights_is_noted_once():
    assert provenance(nn.Sequential(Filled(), Filled()), None)["licences"] == [
        "Weights by Somebody: Some License"
    ]


def test_weights_that_were_not_loaded_need_no_licence():
    assert provenance(nn.Linear(1, 1), None)["licences"] == []


def test_notes_of_the_start_file_are_handed_on():
    file = WeightFile(Path("best.pth"), {}, {"licences": ["first", "second"]})
    assert provenance(nn.Linear(1, 1), file)["licences"] == ["first", "second"]


def test_a_start_file_without_notes_is_named():
    assert (
        "dfine_l_coco.pth"
        in provenance(
            nn.Linear(1, 1),
            WeightFile(Path("weights/dfine_l_coco.pth"), {}, {}),
        )["licences"][0]
    )


def test_the_commit_is_recorded_and_modified_files_are_marked(tmp_path):
    def git(*words: str) -> str:
        command = [
            "git",
            "-C",
            str(tmp_path),
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            *words,
        ]
        return subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "a.txt").write_text("one")
    git("add", "a.txt")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert code_version(tmp_path) == commit
    (tmp_path / "a.txt").write_text("two")
    assert code_version(tmp_path) == f"{commit}+changes"


def test_outside_of_a_checkout_the_version_is_unknown(tmp_path):
    assert code_version(tmp_path) == f"version {__version__}"
