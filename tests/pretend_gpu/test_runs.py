"""Whole runs and detectors on pretended GPUs."""

import json

import pytest
import yaml

from src.runtime.files import write_json
from tests.fixtures.commands import read_log, write_tiny_config
from tests.fixtures.tiny import merged, write_tiny_data

RUN = {
    "use_amp": True,
    "optimizer": {"lr": 2e-4},
    "train_dataloader": {"total_batch_size": 4},
}


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """Eight training and four validation scenes: two steps of four images."""
    return write_tiny_data(tmp_path_factory.mktemp("data"), train=8, val=4)


@pytest.fixture
def train(gpu, small_data, tmp_path):
    """Return a function that trains in `tmp_path / "run"` and returns the results of all ranks."""

    def run(*arguments, settings=None, function="train", **situation):
        overrides = merged(RUN, settings or {})
        config = write_tiny_config(tmp_path, small_data, **overrides)
        command = ["-c", str(config), "--seed=1", *arguments]
        return gpu.call(function, arguments=command, **situation)

    return run


def assert_clean(results) -> None:
    """Check that every rank was successful and computed every kernel."""
    for result in results:
        assert result.code == 0, result.output
        assert result.report["launches"] == 0


def test_a_run_trains_evaluates_saves_and_resumes_in_fp16(train, tmp_path):
    assert_clean(train("-u", "epochs=1", capability=75))
    last = str(tmp_path / "run/last.pth")
    assert_clean(train("-r", last, "--override", capability=75))
    records = read_log(tmp_path / "run")
    assert [record["epoch"] for record in records] == [0, 1]


def test_a_run_on_the_cpu_opens_no_cuda_context(train):
    (result,) = train("-u", "epochs=1", function="train_on_cpu")
    assert result.code == 0, result.output
    assert result.value == {"opened": False}


def test_two_ranks_train_through_two_phases_in_bf16(train, tmp_path):
    phases = {"freeze_backbone_epochs": 1, "unfreeze_blocks": 1}
    results = train(
        settings={"DINOv3Backbone": phases, "sync_bn": True},
        ranks=2,
        devices=2,
    )
    assert_clean(results)
    counts = [record["n_trainable"] for record in read_log(tmp_path / "run")]
    assert counts[0] < counts[1]
    operations = results[1].report["operations"]
    assert operations["aten::batch_norm_gather_stats_with_counts"] > 0


def test_a_step_that_does_not_fit_ends_with_code_6_and_advice(train):
    (result,) = train(
        settings={"eval_spatial_size": [256, 256]}, memory_gb=0.03
    )
    assert result.code == 6
    assert "the largest batch of this run does not fit" in result.output
    assert "total_batch_size" in result.output


def test_the_largest_batch_that_fits_is_chosen_and_kept(train, tmp_path):
    """The recipe has four images in a step, and in a batch of the evaluation, which is limited too."""
    words = ("--batch", "auto", "-u", "epochs=1")
    settings = {"eval_spatial_size": [256, 256]}
    (result,) = train(*words, settings=settings, memory_gb=0.03)
    assert_clean([result])
    config = yaml.safe_load((tmp_path / "run/config.yml").read_text())
    chosen = config["train_dataloader"]["total_batch_size"]
    assert chosen * config["grad_accum_steps"] == 4
    assert chosen < 4
    assert config["val_dataloader"]["total_batch_size"] < 4
    assert "the largest that fits" in result.output
    last = str(tmp_path / "run/last.pth")
    (result,) = train(
        "-r",
        last,
        "--batch",
        "auto",
        "-u",
        "epochs=2",
        "--override",
        settings=settings,
    )
    assert_clean([result])
    assert f"the run keeps its batch of {chosen}" in result.output


def test_a_gpu_without_room_for_one_image_ends_with_code_6(train):
    (result,) = train(
        "--batch",
        "auto",
        settings={"eval_spatial_size": [640, 640]},
        memory_gb=0.03,
    )
    assert result.code == 6
    assert "not even one image fits into the memory of 0.0 GB" in result.output


@pytest.mark.slow
def test_two_ranks_agree_on_a_batch(train, tmp_path):
    results = train("--batch", "auto", "-u", "epochs=1", ranks=2, devices=2)
    assert_clean(results)
    config = yaml.safe_load((tmp_path / "run/config.yml").read_text())
    assert config["train_dataloader"]["total_batch_size"] == 4
    assert "(by rank: 2, 2)" in results[0].output


def test_an_error_in_the_pin_thread_is_reported_at_once(train):
    (result,) = train(
        "-u",
        "train_dataloader.num_workers=1",
        "train_dataloader.data_timeout=5",
        function="train_without_file_descriptors",
    )
    assert result.code == 6
    last_line = result.output.splitlines()[-1]
    assert "ulimit -n" in last_line and "storage" not in last_line


def test_a_killed_run_does_not_leave_the_status_of_the_run_before(
    train, tmp_path
):
    status = tmp_path / "run/run_status.json"
    status.parent.mkdir()
    write_json(status, {"status": "preempted", "exit_code": 75, "message": ""})
    (result,) = train(function="train_and_die")
    assert result.code == -9
    assert json.loads(status.read_text())["status"] == "running"


def test_a_detector_finds_the_boxes_of_the_cpu(gpu):
    (result,) = gpu.call("detect")
    assert result.code == 0, result.output
    assert result.value["report"]["launches"] == 0
    for here, there in zip(
        result.value["cuda"], result.value["cpu"], strict=True
    ):
        assert here == pytest.approx(there, abs=1e-3)


def test_a_detector_copies_no_constants_to_the_device(gpu):
    (result,) = gpu.call("detect")
    places = result.value["report"]["synchronizations"]
    decoder = (
        "src/zoo/dfine/dfine_decoder.py",
        "src/zoo/dfine/decoder_input.py",
        "src/zoo/dfine/decoder_stack.py",
    )
    assert not [place for place, _, _ in places if place.startswith(decoder)]


def test_detections_of_a_batch_are_copied_to_the_host_together(gpu):
    (result,) = gpu.call("score")
    assert result.code == 0, result.output
    assert result.value["AP"] == 1
    assert result.value["report"]["launches"] == 0
    copies = result.value["report"]["synchronizations"]
    assert [times for *_, times in copies] == [1]
