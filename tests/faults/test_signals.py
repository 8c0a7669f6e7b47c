"""Signals, dead and silent ranks, launchers that disappear: rows F21 to F30 and F32."""

import re
import shutil
import signal
import time

import pytest

from src.core.errors import RankError
from src.runtime.distributed import (
    barrier,
    check_ranks_agree,
    explain_lost_rank,
    rank,
)
from src.runtime.watchdog import Watchdog
from src.runtime.weight_files import read_tensor_file
from tests.faults.commands import Training, wait_for_any, wait_until_gone
from tests.fixtures.commands import read_log, run_python, write_tiny_config
from tests.fixtures.ports import free_port
from tests.fixtures.processes import on_ranks
from tests.fixtures.slow import slow

UNDERWAY = r"epoch \d+/\d+  step [2-9]/"
ERROR = "error["


@pytest.fixture
def config(tiny_data, tmp_path):
    """A run that does not end by itself within the test; every step is logged."""
    return write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=200,
        print_freq=1,
        train_dataloader={"collate_fn": {"stop_epoch": None}},
    )


def saved_step(run) -> int:
    """Return the number of steps in the saved state; fail if the file is not intact."""
    return read_tensor_file(run / "last.pth")["progress"]["total_steps"]


def errors_of(training) -> list[str]:
    return [line for line in training.said().splitlines() if ERROR in line]


@pytest.mark.parametrize("name", ["SIGTERM", *slow("SIGINT", "SIGUSR1")])
def test_f21_a_signal_ends_the_step_saves_and_exits_with_75(
    config, tmp_path, name
):
    with Training(tmp_path / "run", "-c", config, "--seed=1") as training:
        training.wait_for(UNDERWAY)
        training.send(signal.Signals[name])
        assert training.end() == 75
    assert (
        training.status()["status"] == "preempted"
        and f"stopped by {name} after step" in training.status()["message"]
    )
    assert saved_step(tmp_path / "run") > 0


def test_f21_a_run_resumes_after_a_signal(tiny_data, tmp_path):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=6,
        print_freq=1,
        train_dataloader={"collate_fn": {"stop_epoch": None}},
    )
    with Training(tmp_path / "run", "-c", config, "--seed=1") as training:
        training.wait_for(UNDERWAY)
        training.send(signal.SIGTERM)
        assert training.end() == 75
    result = run_python(
        "train.py", "-c", config, "-r", "auto", "--output-dir", tmp_path / "run"
    )
    assert result.returncode == 0, result.stderr
    assert [record["epoch"] for record in read_log(tmp_path / "run")] == list(
        range(6)
    )


def test_f22_a_signal_to_torchrun_stops_all_ranks_at_the_same_step(
    config, tmp_path
):
    with Training(
        tmp_path / "run", "-c", config, "--seed=1", ranks=2
    ) as training:
        training.wait_for(UNDERWAY)
        training.send(signal.SIGTERM)
        assert training.end() != 0
    assert (
        training.status()["status"] == "preempted"
        and training.status()["exit_code"] == 75
    )
    stops = {
        line.partition("after step")[2].partition(";")[0]
        for line in errors_of(training)
        if "after step" in line
    }
    assert len(stops) == 1 and saved_step(tmp_path / "run") > 0


@pytest.mark.slow
def test_f23_torchrun_forwards_sigusr1_if_configured(config, tmp_path):
    flag = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    with Training(
        tmp_path / "run",
        "-c",
        config,
        "--seed=1",
        ranks=2,
        launcher=(flag,),
        SLURM_JOB_ID="1",
    ) as training:
        training.wait_for(UNDERWAY)
        training.send(signal.SIGUSR1)
        training.end()
    assert training.status()["status"] == "preempted"
    assert "--signals-to-handle" not in training.said()


def test_f23_on_slurm_a_torchrun_that_would_die_of_sigusr1_is_warned_of(
    config, tmp_path
):
    with Training(
        tmp_path / "run", "-c", config, "--seed=1", ranks=2, SLURM_JOB_ID="1"
    ) as training:
        training.wait_for(
            "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
        )


@pytest.mark.slow
def test_f24_a_signal_to_one_rank_stops_all(config, tmp_path):
    with Training(
        tmp_path / "run", "-c", config, "--seed=1", ranks=2
    ) as training:
        training.wait_for(UNDERWAY)
        training.send(signal.SIGTERM, training.workers()[1])
        training.end()
    assert (
        training.status()["status"] == "preempted"
        and "a signal to another rank" in training.status()["message"]
    )
    assert saved_step(tmp_path / "run") > 0


@pytest.mark.slow
def test_f25_a_second_signal_ends_at_once_and_the_saved_state_stays_intact(
    tiny_data, tmp_path
):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=200,
        print_freq=1,
        save_every_steps=1,
        train_dataloader={"collate_fn": {"stop_epoch": None}},
    )
    with Training(tmp_path / "run", "-c", config, "--seed=1") as training:
        training.wait_for(r"epoch 2/\d+  step [2-9]/")
        training.send(signal.SIGTERM)
        training.wait_for("SIGTERM: finishing this step")
        training.send(signal.SIGTERM)
        assert training.end() in (143, 75)  # 75 if it was faster
    assert saved_step(tmp_path / "run") >= 6


@pytest.mark.slow
def test_f26_torchrun_restarts_ranks_after_one_was_killed_and_the_run_resumes(
    tiny_data, tmp_path
):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=8,
        print_freq=1,
        save_every_steps=1,
        train_dataloader={"collate_fn": {"stop_epoch": None}},
    )
    with Training(
        tmp_path / "run",
        "-c",
        config,
        "--seed=1",
        "-r",
        "auto",
        ranks=2,
        launcher=("--max-restarts=2",),
    ) as training:
        training.wait_for(r"epoch 2/\d+  step")
        training.send(signal.SIGKILL, training.workers()[1])
        training.wait_for("-r auto: resuming from")
        assert training.end() == 0
    assert [record["epoch"] for record in read_log(tmp_path / "run")] == list(
        range(8)
    )


@pytest.mark.slow
def test_f27_an_error_of_one_rank_ends_all_and_is_the_last_line(
    config, tiny_data, tmp_path
):
    images = tmp_path / "images"
    shutil.copytree(tiny_data.folder / "images", images)
    (images / "train_00005.jpg").write_bytes(
        b""
    )  # met when the image is decoded, by one rank
    paths = [
        f"train_dataloader.dataset.img_folder={images}",
        "train_dataloader.dataset.bad_images=0",
    ]
    with Training(
        tmp_path / "run", "-c", config, "--seed=1", "-u", *paths, ranks=2
    ) as training:
        assert training.end() != 0
    assert errors_of(training) and all(
        "is empty (0 bytes)" in line for line in errors_of(training)
    )
    assert training.status()["exit_code"] == 3


@pytest.mark.slow
def test_f28_a_rank_that_does_not_answer_is_named_with_its_last_step(
    config, tmp_path
):
    with Training(
        tmp_path / "run",
        "-c",
        config,
        "--seed=1",
        "-u",
        "rank_timeout=10",
        ranks=2,
    ) as training:
        training.wait_for(UNDERWAY)
        hung = training.workers()[1]
        training.send(signal.SIGSTOP, hung)
        training.wait_for(r"error\[7\]")
        said = errors_of(training)[0]
        training.send(signal.SIGKILL, hung)
    assert (
        re.search(
            r"rank 1 did not (reach|finish) step (\d+) \(last seen at step \d+\)",
            said,
        )
        and "does not respond" in said
    )
    assert (
        f"stacks: {tmp_path}/run/stacks.rank0.txt (none from rank 1)" in said
    )  # a stopped process cannot
    assert "File" in (tmp_path / "run/stacks.rank0.txt").read_text()


def test_f28_a_rank_that_hangs_is_named_with_the_step_it_did_not_reach_and_all_ranks_show_where_they_stand(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("src.runtime.distributed._GRACE", 0.3)

    explained = tmp_path / "explained"

    def hangs_here() -> None:
        while not explained.exists():
            time.sleep(0.02)

    def train() -> str:
        watchdog = Watchdog(tmp_path, timeout=2)
        try:
            watchdog.beat(122)
            barrier()
            if rank():
                hangs_here()
                return ""
            watchdog.beat(123)
            barrier()
        except RuntimeError as error:
            return str(explain_lost_rank(error))
        finally:
            if not rank():
                explained.touch()

    said, _ = on_ranks(2, train, rank_timeout=4)
    stacks = [tmp_path / f"stacks.rank{number}.txt" for number in range(2)]
    assert (
        said == "rank 1 did not reach step 123 (last seen at step 122); "
        f"it ended or does not respond; stacks: {stacks[0]}, {stacks[1]}; "
        "torch reports: Timed out waiting 4000ms for recv operation to complete"
    )
    assert (
        "barrier" in stacks[0].read_text()
        and "hangs_here" in stacks[1].read_text()
    )


@pytest.mark.slow
def test_f29_ranks_end_with_a_launcher_that_was_killed(config, tmp_path):
    with Training(
        tmp_path / "run", "-c", config, "--seed=1", ranks=2
    ) as training:
        training.wait_for(UNDERWAY)
        workers = training.workers()
        training.send(signal.SIGKILL)
        for pid in workers:
            wait_until_gone(pid, training.said)
    assert "the state is saved" in training.said(), training.said()
    assert saved_step(tmp_path / "run") > 0


def test_f32_ranks_with_different_configurations_do_not_start(
    tiny_data, tmp_path
):
    def known() -> str:
        try:
            check_ranks_agree(
                {"configuration": "a" if rank() else "b", "seed": 1}
            )
        except RankError as error:
            return str(error)
        return ""

    assert (
        on_ranks(2, known)
        == [
            (
                "rank 1 and rank 0 differ in the configuration; "
                "start all ranks with the same command and files"
            )
        ]
        * 2
    )


def test_f32_ranks_with_different_data_do_not_start_and_both_numbers_are_named():
    def known() -> str:
        try:
            check_ranks_agree({"number of images": 7 + rank()})
        except RankError as error:
            return str(error)
        return ""

    assert "differ in the number of images: 8 and 7" in on_ranks(2, known)[0]


@pytest.mark.slow
def test_two_torchrun_agents_as_two_machines_train_and_go_on_after_one_rank_was_killed(
    tiny_data, tmp_path
):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=20,
        print_freq=1,
        save_every_steps=1,
        train_dataloader={"collate_fn": {"stop_epoch": None}},
    )
    port = free_port()
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    agents = [
        f"--nnodes=2 --rdzv_backend=c10d --rdzv_endpoint=127.0.0.1:{port} --rdzv_id=one "
        f"--max-restarts=3 --node_rank={n}".split()
        for n in range(2)
    ]
    with (
        Training(
            tmp_path / "run",
            "-c",
            config,
            "--seed=1",
            "-r",
            "auto",
            per_agent=1,
            launcher=tuple(agents[0]),
            **own_store,
        ) as first,
        Training(
            tmp_path / "run",
            "-c",
            config,
            "--seed=1",
            "-r",
            "auto",
            per_agent=1,
            launcher=tuple(agents[1]),
            text="second",
            **own_store,
        ) as second,
    ):
        main = (
            first
            if wait_for_any((first, second), r"epoch 2/\d+  step") is first
            else second
        )
        other = second if main is first else first
        other.send(signal.SIGKILL, other.workers()[0])
        wait_for_any((first, second), "-r auto: resuming from")
        assert [first.end(), second.end()] == [0, 0]
    assert [record["epoch"] for record in read_log(tmp_path / "run")] == list(
        range(20)
    )
