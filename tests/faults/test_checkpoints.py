"""Checkpoints that are damaged, hostile, foreign or incomplete: F02 to F10, F14, F15, F17, F18 and F20."""

import json
import os
import pickle
import random
import resource
import shutil
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import torch

from src.core import YAMLConfig
from src.core.errors import ResourceError, RunError
from src.runtime.files import locked
from src.runtime.process import explain
from src.runtime.weight_files import (
    file_sha256,
    read_tensor_file,
    write_tensor_file,
)
from src.solver import DetSolver, checkpoint, training_loop
from tests.faults.runs import final_state, run, same
from tests.fixtures.processes import run_forked
from tests.fixtures.slow import slow
from tests.fixtures.tiny import SyntheticData, tiny_config

SHORT = {"epochs": 2, "grad_accum_steps": 1}
"""Twelve steps of one batch."""
KILLED = 9


def ended(data: SyntheticData, folder: Path, **overrides) -> tuple[int, str]:
    """Run, and return the exit code and the line that a command would end with."""
    try:
        run(data, folder, **{**SHORT, **overrides})
    except BaseException as error:
        return explain(error)
    return 0, "done"


@pytest.fixture(scope="module")
def straight(tiny_data, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    assert run(tiny_data, folder, **SHORT)
    return folder


@pytest.fixture(scope="module")
def stopped(tiny_data, tmp_path_factory):
    """Folder of a run stopped in its second epoch: `last.pth`, the one before it and `best.pth`."""
    folder = tmp_path_factory.mktemp("stopped")
    assert not run(tiny_data, folder, stop_after=9, **SHORT)
    return folder


@pytest.fixture
def folder(stopped, tmp_path):
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.fixture
def other_classes(tiny_data, tmp_path):
    """The same images with an additional class, whose name comes first, and other ids."""
    data = SyntheticData(
        Path(shutil.copytree(tiny_data.folder, tmp_path / "other"))
    )
    for part in ("train.json", "val.json"):
        labels = json.loads((data.folder / part).read_text())
        for record in labels["categories"]:
            record["id"] += 10
        for record in labels["annotations"]:
            record["category_id"] += 10
        labels["categories"].append({"id": 0, "name": "anvil"})
        (data.folder / part).write_text(json.dumps(labels))
    return data


# ---- interrupted saves ----


def crash_at(point: int) -> list[int]:
    """End this process before the given call that makes a file durable; return a list of these calls."""
    calls: list[int] = []

    def crashing(function):
        def call(*arguments, **keywords):
            if len(calls) == point:
                os._exit(KILLED)
            calls.append(point)
            return function(*arguments, **keywords)

        return call

    for name in ("fsync", "replace", "link"):
        setattr(os, name, crashing(getattr(os, name)))
    return calls


@pytest.fixture(scope="module")
def end_of_first_epoch(tiny_data, tmp_path_factory):
    """The folder of a run whose first epoch is trained and not yet evaluated."""
    folder = tmp_path_factory.mktemp("first")
    assert not run(tiny_data, folder, stop_after=6, in_evaluation=True, **SHORT)
    return folder


@pytest.mark.parametrize("point", [7, *slow(*range(7), *range(8, 14))])
def test_f02_a_crash_at_any_point_of_a_save_loses_nothing(
    straight, end_of_first_epoch, tiny_data, tmp_path, point
):
    """The saves after the evaluation of the first epoch (best, last) and of the second."""
    folder = Path(shutil.copytree(end_of_first_epoch, tmp_path / "run"))

    def crashing() -> None:
        calls = crash_at(point)
        run(tiny_data, folder, **SHORT)
        (tmp_path / "calls").write_text(str(len(calls)))

    code = run_forked(crashing, tmp_path).code
    if code == 0:  # the second epoch was not the best: there are fewer points
        assert 11 <= int((tmp_path / "calls").read_text()) <= point
    else:
        assert code == KILLED
    for path in folder.glob("*.pth"):
        read_tensor_file(path)
    assert run(tiny_data, folder, **SHORT)
    assert same(final_state(folder), final_state(straight))
    assert not list(folder.glob(".*.dfine-tmp")) or code == 0


def test_f02_a_crash_in_the_middle_of_writing_leaves_the_file_before_it_and_the_rest_is_removed(
    straight, tiny_data, folder, caplog
):
    def crashing() -> None:
        os.fsync = lambda _: os._exit(
            KILLED
        )  # what was written is in the temporary file alone
        run(tiny_data, folder, **SHORT)

    before = (folder / "last.pth").read_bytes()
    assert run_forked(crashing, folder.parent).code == KILLED
    assert (folder / "last.pth").read_bytes() == before
    assert len(list(folder.glob(".*.dfine-tmp"))) == 1
    with caplog.at_level("INFO"):
        assert run(tiny_data, folder, **SHORT)
    assert "removed 1 half-written files of an earlier run" in caplog.text
    assert same(final_state(folder), final_state(straight))


# ---- damage ----


@pytest.mark.parametrize(
    "share",
    [0, 1e-9, 0.5, 0.99],
    ids=["empty", "one byte", "half", "almost whole"],
)
def test_f03_a_truncated_last_is_reported_and_the_previous_one_is_resumed(
    straight, tiny_data, folder, caplog, share
):
    raw = (folder / "last.pth").read_bytes()
    (folder / "last.pth").write_bytes(
        raw[: -(-int(len(raw) * share * 1e9) // 10**9)]
    )
    assert run(tiny_data, folder, **SHORT)
    assert (
        "last.pth" in caplog.text
        and f"resuming from {folder / 'last.previous.pth'} (epoch 2, step 0)"
        in caplog.text
    )
    assert same(final_state(folder), final_state(straight))


def test_f03_without_any_intact_file_each_is_named_with_its_reason(
    tiny_data, folder
):
    (folder / "last.pth").write_bytes(b"")
    (folder / "last.previous.pth").write_bytes(b"x")
    code, message = ended(tiny_data, folder)
    assert code == 4
    assert (
        "last.pth is empty (0 bytes)" in message
        and f"{folder / 'last.previous.pth'} is not a file of plain tensors"
        in message
    )


def test_f04_every_flipped_bit_is_detected_or_means_nothing(tiny_data, folder):
    rng, path = random.Random(0), folder / "last.pth"
    raw, detected, folder_of_run = (
        path.read_bytes(),
        0,
        checkpoint.CheckpointFolder(folder),
    )
    whole = final_state(folder)
    for _ in range(20):
        damaged = bytearray(raw)
        damaged[rng.randrange(len(raw) - 80)] ^= 1 << rng.randrange(
            8
        )  # the rest is the digest itself: tests/runtime/test_weight_files.py
        path.write_bytes(damaged)
        detected += (
            folder_of_run.load_last(path)[0]["progress"]["step"] == 0
        )  # that of the file before
    assert detected == 20
    path.write_bytes(raw)
    assert same(final_state(folder), whole)


# ---- hostile files ----


@pytest.mark.parametrize("flag", ["resume", "tuning"])
def test_f05_a_zip_bomb_is_refused_before_it_takes_memory(
    tiny_data, tmp_path, flag
):
    torch.save(
        {"model": {"w": torch.zeros(50_000_000)}}, tmp_path / "honest.pth"
    )
    with (
        zipfile.ZipFile(tmp_path / "honest.pth") as honest,
        zipfile.ZipFile(
            tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1
        ) as bomb,
    ):
        for record in honest.infolist():
            bomb.writestr(record.filename, honest.read(record))

    def opened() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        code, message = ended(
            tiny_data,
            tmp_path / "run",
            **{"resume": None, flag: str(tmp_path / "bomb.pth")},
        )
        assert code == 4 and "unpacks to" in message, message
        assert (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
        )

    child = run_forked(opened, tmp_path)
    assert child.code == 0, child.err


class _Touches:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("flag", ["resume", "tuning"])
@pytest.mark.parametrize(
    "save",
    [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))],
    ids=["archive", "bare pickle"],
)
def test_f06_code_in_a_file_does_not_run_and_no_second_attempt_is_made(
    tiny_data, tmp_path, flag, save
):
    save(
        {
            "first": _Touches(tmp_path / "first"),
            "model": _Touches(tmp_path / "second"),
        },
        tmp_path / "evil.pth",
    )
    code, message = ended(
        tiny_data,
        tmp_path / "run",
        **{"resume": None, flag: str(tmp_path / "evil.pth")},
    )
    assert code == 4
    assert (
        "is not a file of plain tensors" in message
        and "it was not loaded" in message
        and "weights_only" not in message
    )
    assert (
        not (tmp_path / "first").exists() and not (tmp_path / "second").exists()
    )


# ---- other classes, other contents ----


def test_f07_resuming_with_other_classes_is_refused_with_the_way_to_start_from_the_weights(
    tiny_data, folder, other_classes
):
    code, message = ended(other_classes, folder)
    assert code == 4
    assert (
        "anvil" in message
        and "use -t to start a new run from its weights" in message
    )
    code, message = ended(tiny_data, folder, num_classes=9, override=True)
    assert code == 4
    assert "has 4 classes, the configuration has 9; use -t" in message


def test_f08_starting_from_weights_with_other_classes_takes_rows_by_name_and_logs_the_new_ones(
    stopped, other_classes, tmp_path, caplog
):
    with caplog.at_level("INFO"):
        assert run(
            other_classes,
            tmp_path / "new",
            resume=None,
            tuning=str(stopped / "best.pth"),
            optimizer={"lr": 0.0},
            **SHORT,
        )
    assert "re-initialised: 1 of 5 classes" in caplog.text
    old, new = (
        read_tensor_file(folder / "best.pth")
        for folder in (stopped, tmp_path / "new")
    )
    key = "decoder.enc_score_head.bias"
    rows = {
        entry["name"]: row for row, entry in enumerate(old["meta"]["classes"])
    }
    for row, entry in enumerate(new["meta"]["classes"]):
        if entry["name"] in rows:
            assert torch.equal(
                new["model"][key][row], old["model"][key][rows[entry["name"]]]
            ), entry


@pytest.mark.parametrize(
    "content",
    [{}, [1, 2], {"foo": 1}, {"conv.weight": torch.zeros(3, 3)}],
    ids=["empty", "list", "other keys", "another model"],
)
def test_f09_a_file_that_is_not_a_checkpoint_is_refused_with_its_content(
    tiny_data, tmp_path, content
):
    torch.save(content, tmp_path / "other.pth")
    for flag, expected in (
        ("resume", "holds weights but no training state"),
        ("tuning", "expected|neither weights|no class head"),
    ):
        code, message = ended(
            tiny_data,
            tmp_path / "run",
            **{"resume": None, flag: str(tmp_path / "other.pth")},
        )
        assert code == 4
        assert any(part in message for part in expected.split("|")), message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_f10_weights_that_are_not_finite_are_refused_with_their_name(
    tiny_data, folder, value
):
    state = read_tensor_file(folder / "last.pth")
    state["model"]["encoder.input_proj.0.conv.weight"].view(-1)[3] = value
    state["ema"]["module"] = dict(state["model"])
    write_tensor_file(folder / "last.pth", state)
    for output, flags in (
        (folder, {}),
        (folder / "new", {"resume": None, "tuning": str(folder / "last.pth")}),
    ):
        code, message = ended(tiny_data, output, **flags)
        assert code == 5
        assert (
            "encoder.input_proj.0.conv.weight contains values that are not finite"
            in message
        )


# ---- disks and folders ----


def test_f14_a_full_disk_is_reported_three_times_and_what_was_saved_stays(
    tiny_data, folder
):
    before = (folder / "last.pth").read_bytes()

    def on_a_small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        code, message = ended(tiny_data, folder, save_every_steps=1)
        assert (
            code == 6
            and "disk full writing" in message
            and "MB, free " in message
            and "given up after 3 attempts" in message
        ), message

    child = run_forked(on_a_small_disk, folder.parent)
    assert child.code == 0, child.err
    assert (folder / "last.pth").read_bytes() == before
    assert not list(folder.glob(".*.dfine-tmp"))


def test_f14_a_disk_that_is_emptied_in_time_costs_nothing(
    straight, tiny_data, folder, monkeypatch, caplog
):
    full = iter([True, True])

    def write(*arguments, **keywords) -> None:
        if next(full, False):
            raise ResourceError(
                "disk full writing last.pth: need 0.2 MB, free 0.0 MB, 0.1 MB written before the error"
            )
        write_tensor_file(*arguments, **keywords)

    monkeypatch.setattr(checkpoint, "write_tensor_file", write)
    assert run(tiny_data, folder, save_every_steps=1, **SHORT)
    assert (
        caplog.text.count("training continues and tries again at the next save")
        == 2
    )
    assert same(final_state(folder), final_state(straight))


def no_model(self) -> None:
    raise AssertionError("a model was built")


def test_f15_an_output_folder_that_is_a_file_is_reported_before_the_model_is_built(
    tiny_data, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(YAMLConfig, "model", property(no_model))
    code, message = ended(tiny_data, tmp_path / "file")
    assert code == 2
    assert "output_dir" in message and "cannot be written to" in message


def test_f15_a_read_only_output_folder_is_reported_before_the_model_is_built(
    tiny_data, tmp_path
):
    with (
        tempfile.TemporaryDirectory() as name
    ):  # under /tmp: others may go through it
        os.chmod(name, 0o555)
        solver = DetSolver(
            tiny_config(tiny_data, Path(name)), torch.device("cpu")
        )

        def without_rights() -> None:
            if os.getuid() == 0:
                os.setuid(65534)
            YAMLConfig.model = property(no_model)
            with pytest.raises(RunError) as caught:
                solver.fit()
            assert explain(caught.value) == (
                2,
                f"output_dir {name} cannot be written to: Permission denied",
            )

        child = run_forked(without_rights, tmp_path)
    assert child.code == 0, child.err


def test_f17_a_second_run_in_the_same_folder_is_refused_with_the_pid_of_the_first(
    straight, tiny_data, folder
):
    ready, held = os.pipe()
    first = os.fork()
    if not first:
        with locked(folder):
            os.write(held, b"x")
            time.sleep(60)
        os._exit(0)
    try:
        os.read(ready, 1)
        code, message = ended(tiny_data, folder)
    finally:
        os.kill(first, 9)
        os.waitpid(first, 0)
    assert code == 2
    assert f"{folder} is in use by process {first}" in message
    assert run(tiny_data, folder, **SHORT), (
        "the lock goes with the process, however it ends"
    )
    assert same(final_state(folder), final_state(straight))


def test_f18_a_crash_in_the_last_evaluation_costs_no_result(
    straight, tiny_data, folder
):
    """The last stage is the evaluation after the last epoch. Steps since the last save are repeated."""

    def crashing() -> None:
        training_loop.evaluate = lambda *_, **__: os._exit(KILLED)
        run(tiny_data, folder, **SHORT)

    assert run_forked(crashing, folder.parent).code == KILLED
    assert run(tiny_data, folder, **SHORT)
    assert same(final_state(folder), final_state(straight))
    assert [
        json.loads(line)["epoch"]
        for line in (folder / "log.txt").read_text().splitlines()
    ] == [0, 1]


# ---- start weights ----


@pytest.mark.parametrize("digest", ["0123456789abcdef" * 4, "01234567"])
def test_f20_start_weights_of_another_sha256_are_refused_with_path_and_digest(
    tiny_data, tmp_path, digest
):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"something else")
    code, message = ended(
        tiny_data,
        tmp_path / "run",
        tuning=None,
        DINOv3Backbone={
            "pretrained": True,
            "checkpoint_path": str(path),
            "checkpoint_sha256": digest,
        },
    )
    assert code == 4
    assert message.startswith(
        f"{path} is damaged or another file: its sha256 is {file_sha256(path)}, "
        f"expected {digest} (checkpoint_sha256)"
    )


def test_f20_with_a_sha256_nothing_is_fetched(tiny_data, tmp_path):
    settings = {
        "pretrained": True,
        "checkpoint_path": str(tmp_path / "none.pth"),
        "checkpoint_sha256": "01234567",
    }
    code, message = ended(
        tiny_data, tmp_path / "run", tuning=None, DINOv3Backbone=settings
    )
    assert (
        code == 4
        and f"there is no file {tmp_path}/none.pth with the sha256 01234567"
        in message
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("nowhere.pth", None, "nowhere.pth"),
        ("small.pth", b"7 bytes", "small.pth is not a file of plain tensors"),
        ("dinov3_vits16-00000000.pth", b"7 bytes", "its sha256 begins with"),
    ],
)
def test_f20_missing_or_damaged_start_weights_end_the_run_at_once(
    tiny_data, tmp_path, name, content, expected
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    settings = {"pretrained": True, "checkpoint_path": str(tmp_path / name)}
    code, message = ended(
        tiny_data, tmp_path / "run", tuning=None, DINOv3Backbone=settings
    )
    assert code == 4
    assert expected in message
    assert not (tmp_path / "run/last.pth").exists()
