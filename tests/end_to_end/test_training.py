"""Training and evaluation as users start them."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from src.inference import Detector
from src.runtime.files import LOCK
from src.runtime.weight_files import read_tensor_file
from tests.fixtures.commands import read_log, run_python, write_tiny_config
from tests.fixtures.tiny import ROOT
from tests.fixtures.trained_tiny import TRAINED


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """A finished run of two epochs, the second one clean, on one rank, from weights that find objects."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_tiny_config(
        folder,
        tiny_data,
        pictures=True,
        report=True,
        optimizer={"lr": 2e-4},
    )
    result = run_python("train.py", "-c", config, "-t", TRAINED, "--seed=1")
    assert result.returncode == 0, result.stderr + result.stdout
    assert all(record["AP"] > 0.1 for record in read_log(folder / "run")), (
        "scores of 0 would prove nothing"
    )
    return config, folder / "run", result.stdout


def test_a_run_leaves_what_its_users_need(trained):
    _, run, _ = trained
    assert {
        "best.pth",
        "last.pth",
        "log.txt",
        "results.csv",
        "curves.png",
        "report.html",
        "config.yml",
        "summary",
        "run_status.json",
    } <= {path.name for path in run.iterdir()}
    assert json.loads((run / "run_status.json").read_text()) == {
        "status": "done",
        "exit_code": 0,
        "message": "done",
    }


def test_a_run_shows_what_it_learns_from_and_what_it_finds(trained):
    assert {path.name for path in (trained[1] / "pictures").iterdir()} == {
        f"{name}_epoch000{n}.jpg"
        for name in ("training", "validation")
        for n in (1, 2)
    }


def test_the_log_has_a_record_for_each_epoch_with_every_loss_and_metric(
    trained,
):
    records = read_log(trained[1])
    assert [(r["epoch"], r["stage"]) for r in records] == [(0, 1), (1, 2)]
    assert {
        "train_loss",
        "train_loss_vfl",
        "train_loss_ddf_aux_0",
        "train_loss_fgl_dn_1",
        "AP",
        "AP50",
        "train_lr",
        "best_score",
    } <= set(records[0])
    assert len(records[0]["test_coco_eval_bbox"]) == 12


def test_the_terminal_has_one_line_an_epoch(trained):
    assert (
        sum(
            " left 0:" in line and "AP50" in line
            for line in trained[2].splitlines()
        )
        == 2
    )


def test_the_first_step_has_a_line_with_progress_speed_and_memory(trained):
    lines = [line for line in trained[2].splitlines() if "  step " in line]
    assert re.search(
        r"epoch 1/2  step 1/\d+  loss \d+\.\d+  lr \S+  [\d.]+ images/s  left \d:\d\d:\d\d  memory [\d.]+ GB",
        lines[0],
    )


def test_the_table_agrees_with_the_log(trained):
    with open(trained[1] / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    records = read_log(trained[1])
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row, record in zip(rows, records):
        assert float(row["AP"]) == pytest.approx(record["AP"], rel=1e-4)
        kinds = ("vfl", "bbox", "giou", "fgl", "ddf")
        losses = [float(row[f"loss_{kind}"]) for kind in kinds]
        assert sum(losses) == pytest.approx(float(row["loss"]), rel=1e-4)
        assert float(row["lr_default"]) > 0


def test_the_log_has_the_ap_of_each_class_by_name(trained):
    record = read_log(trained[1])[0]
    by_name = record["AP_by_class_name"]
    assert list(by_name) == ["disc", "square", "triangle", "ring"]
    assert list(by_name.values()) == list(record["AP_of_class"].values())


def test_the_commands_that_are_printed_at_the_end_work_when_they_are_copied(
    trained, tmp_path
):
    lines = trained[2].splitlines()
    commands = {}
    for line in lines[-3:]:
        _, title, command = line.split(maxsplit=2)
        commands[title] = shlex.split(command)
    assert list(commands) == ["evaluate", "predict", "export"]
    for title in ("evaluate", "predict"):
        _, *words = commands[title]
        if title == "predict":
            words += ["--output", str(tmp_path)]
        result = run_python(*words, OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
    assert (trained[1] / "eval.json").exists()
    assert (tmp_path / "predictions.json").exists()
    assert (ROOT / commands["export"][1]).is_file()


def test_the_report_shows_the_best_checkpoint_on_the_validation_data(trained):
    page = (trained[1] / "report.html").read_text()
    assert "best.pth" in page and "triangle" in page


def test_the_stage_switch_is_logged(trained):
    assert (
        "stage 2 begins: no strong augmentation, from the best weights of stage 1 (epoch 1"
        in trained[2]
    )


def test_the_resolved_configuration_trains_again(trained):
    settings = yaml.safe_load((trained[1] / "config.yml").read_text())
    assert settings["epochs"] == 2 and settings["num_classes"] == 4


def test_the_configuration_of_a_run_shows_what_its_lengths_became_and_keeps_what_was_written(
    trained,
):
    text = (trained[1] / "config.yml").read_text()
    assert text.splitlines()[1] == "# Lengths in this run:"
    assert (
        "\n#   ema.horizon: ~ -> 50 steps\n" in text
        and "\n#   ema.warmups: ~ -> 50 steps\n" in text
    )
    assert (
        yaml.safe_load(text)["ema"].get("horizon")
        is yaml.safe_load(text)["ema"]["decay"]
        is None
    )


def test_best_pth_has_its_classes_and_score(trained):
    content = read_tensor_file(trained[1] / "best.pth")
    assert [c["name"] for c in content["meta"]["classes"]] == [
        "disc",
        "square",
        "triangle",
        "ring",
    ]
    assert [c["id"] for c in content["meta"]["classes"]] == [1, 3, 7, 8]
    assert content["meta"]["score"] == max(
        record["AP"] for record in read_log(trained[1])
    )


def test_best_pth_is_enough_to_find_objects(
    trained, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    detector = Detector.from_checkpoint(trained[1] / "best.pth", device="cpu")
    assert (
        len(
            detector.predict(
                tiny_data.folder / "images/val_00000.jpg", threshold=0.0
            )
        )
        == 20
    )
    meta = detector.meta
    assert (
        meta["input_size"] == [64, 64]
        and meta["licences"] == []
        and "-c" in meta["command"]
        and meta["threshold"] == meta["metrics"]["F1_threshold"]
    )


@pytest.mark.parametrize(
    ("ranks", "batch"), [(1, 3), pytest.param(2, 4, marks=pytest.mark.slow)]
)
def test_evaluating_best_pth_gives_the_score_of_the_log(
    trained, tmp_path, ranks, batch
):
    config, run, _ = trained
    result = run_python(
        "train.py",
        "-c",
        config,
        "--test-only",
        "-r",
        run / "best.pth",
        "--output-dir",
        tmp_path,
        "-u",
        f"val_dataloader.total_batch_size={batch}",
        ranks=ranks,
    )
    assert result.returncode == 0, result.stderr
    logged = max(read_log(run), key=lambda record: record["AP"])
    evaluated = json.loads((tmp_path / "eval.json").read_text())
    for name in ("AP", "AP50", "AR100"):
        assert evaluated[name] == pytest.approx(logged[name], abs=1e-3)


def test_evaluation_matches_classes_by_name_whatever_their_ids(
    trained, tiny_data, tmp_path
):
    config, run, _ = trained
    labels = json.loads((tiny_data.folder / "val.json").read_text())
    for record, key in [(c, "id") for c in labels["categories"]] + [
        (a, "category_id") for a in labels["annotations"]
    ]:
        record[key] = 100 - record[key]  # the order of ids turns around
    (tmp_path / "val.json").write_text(json.dumps(labels))
    result = run_python(
        "train.py",
        "-c",
        config,
        "--test-only",
        "-r",
        run / "best.pth",
        "--output-dir",
        tmp_path,
        "-u",
        f"val_dataloader.dataset.ann_file={tmp_path / 'val.json'}",
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "eval.json").read_text())[
        "AP50"
    ] == pytest.approx(
        max(read_log(run), key=lambda r: r["AP"])["AP50"], abs=1e-6
    )


def test_what_the_command_line_names_counts_and_not_the_start_weights_of_the_configuration(
    trained, tiny_data, tmp_path
):
    """The config.yml of a run that began with -t names these weights; the run's own are to be evaluated."""
    _, run, _ = trained
    config = run / "config.yml"
    assert yaml.safe_load(config.read_text())["tuning"] == str(TRAINED)
    result = run_python(
        "train.py",
        "-c",
        config,
        "--test-only",
        "-r",
        run / "best.pth",
        "--output-dir",
        tmp_path,
    )
    assert (
        result.returncode == 0 and f"from {run / 'best.pth'}" in result.stdout
    )
    assert json.loads((tmp_path / "eval.json").read_text())["weights"] == str(
        run / "best.pth"
    )
    config = write_tiny_config(
        tmp_path, tiny_data, epochs=1, resume=str(run / "last.pth")
    )
    result = run_python("train.py", "-c", config, "-t", TRAINED, "--seed=1")
    assert result.returncode == 0 and "resumed from" not in result.stdout


def test_tuning_starts_from_the_weights_of_a_run(trained, tmp_path):
    config, run, _ = trained
    result = run_python(
        "train.py",
        "-c",
        config,
        "-t",
        run / "best.pth",
        "--output-dir",
        tmp_path / "tuned",
        "-u",
        "epochs=1",
    )
    assert result.returncode == 0, result.stderr
    assert "loaded" in result.stdout and "re-initialised" not in result.stdout


def test_resuming_continues_after_the_last_epoch(trained, tmp_path):
    config, run, _ = trained
    result = run_python(
        "train.py",
        "-c",
        config,
        "-r",
        run / "last.pth",
        "--output-dir",
        tmp_path / "longer",
        "--override",
        "-u",
        "epochs=3",
    )
    assert result.returncode == 0, result.stderr
    assert [record["epoch"] for record in read_log(tmp_path / "longer")] == [2]


def test_a_complete_run_is_unchanged(trained):
    config, run, _ = trained
    before = {
        path: path.stat().st_mtime_ns
        for path in run.glob("*")
        if path.name not in ("run_status.json", LOCK)
    }
    result = run_python("train.py", "-c", config, "-r", run / "last.pth")
    assert result.returncode == 0, result.stderr
    assert (
        "this run is complete: epoch 2 of 2; to continue it, increase epochs and pass --override"
        in result.stdout
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_two_ranks_train_through_the_stage_switch_and_agree(
    tiny_data, tmp_path
):
    config = write_tiny_config(tmp_path, tiny_data)
    result = run_python("train.py", "-c", config, "--seed=1", ranks=2)
    assert result.returncode == 0, result.stderr
    assert "2 ranks" in result.stdout
    assert [record["epoch"] for record in read_log(tmp_path / "run")] == [0, 1]


@pytest.mark.slow
def test_ranks_without_any_object_in_their_batch_train_along(
    tiny_data, tmp_path
):
    labels = json.loads((tiny_data.folder / "train.json").read_text())
    labels["annotations"] = [
        a for a in labels["annotations"] if a["image_id"] <= 3
    ]
    (tmp_path / "sparse.json").write_text(json.dumps(labels))
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=1,
        train_dataloader={
            "dataset": {"ann_file": str(tmp_path / "sparse.json")}
        },
    )
    result = run_python("train.py", "-c", config, "--seed=1", ranks=2)
    assert result.returncode == 0, result.stderr
    assert "21 without objects, used as negatives" in result.stdout
    assert (
        "dropped" not in result.stdout
        and read_log(tmp_path / "run")[0]["train_loss_bbox"] > 0
    )


@pytest.mark.slow
def test_eight_ranks_train_through_the_stage_switch_and_evaluate(
    tiny_data, tmp_path
):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        train_dataloader={"total_batch_size": 8},
        val_dataloader={"total_batch_size": 8},
    )
    result = run_python("train.py", "-c", config, "--seed=1", ranks=8)
    assert result.returncode == 0, result.stderr
    assert "8 ranks" in result.stdout and "stage 2 begins" in result.stdout
    evaluation = run_python(
        "train.py",
        "-c",
        config,
        "--test-only",
        "-r",
        tmp_path / "run/best.pth",
        ranks=8,
    )
    assert evaluation.returncode == 0, evaluation.stderr


@pytest.mark.slow
def test_a_compiled_run_learns_what_an_eager_run_learns_and_resumes(
    tiny_data, tmp_path
):
    """The ViT is frozen in the first epoch and trained in the second, which compiles it again.

    Rounding errors grow over a run, so epochs that begin with the same weights are compared.
    """

    def train(folder: Path, epochs: int, compiled: bool) -> list[float]:
        """Train until an epoch, and return the losses of all epochs."""
        config = write_tiny_config(
            folder,
            tiny_data,
            compile="backbone" if compiled else None,
            DINOv3Backbone={"freeze_backbone_epochs": 1},
        )
        result = run_python(
            "train.py", "-c", config, "--seed=1", "-r", "auto",
            "--override", "-u", f"epochs={epochs}",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        weights = read_tensor_file(folder / "run/last.pth")["model"]
        assert not [key for key in weights if "orig_mod" in key]
        return [record["train_loss"] for record in read_log(folder / "run")]

    eager, compiled, switched = (
        tmp_path / name for name in ("eager", "compiled", "switched")
    )
    eager.mkdir()
    compiled.mkdir()
    (first,) = train(eager, 1, False)
    assert train(compiled, 1, True) == [pytest.approx(first, rel=1e-3)]
    assert len(train(compiled, 2, True)) == 2
    shutil.copytree(eager, switched)
    expected = train(eager, 2, False)
    assert train(switched, 2, True) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_bfloat16_trains_on_a_cpu_that_was_named(tiny_data, tmp_path):
    config = write_tiny_config(tmp_path, tiny_data)
    result = run_python(
        "train.py", "-c", config, "--use-amp", "-d", "cpu", "-u", "epochs=1"
    )
    assert result.returncode == 0, result.stderr
    assert "bfloat16" in result.stdout
    assert read_log(tmp_path / "run")[0]["train_loss"] > 0


@pytest.mark.slow
def test_the_model_learns_eight_pictures_by_heart(tiny_data, tmp_path):
    """Overfitting: labels, boxes, loss and evaluation all mean the same."""
    labels = str(tiny_data.folder / "val.json")
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=90,
        use_ema=False,
        print_freq=1000,
        optimizer={"lr": 0.003},
        lr_scheduler={"milestones": [75]},
        lr_warmup_scheduler={"warmup_duration": 10},
        train_dataloader={
            "dataset": {"ann_file": labels},
            "collate_fn": {"stop_epoch": None},
        },
    )
    result = run_python("train.py", "-c", config, "--seed=1")
    assert result.returncode == 0, result.stderr
    assert read_log(tmp_path / "run")[-1]["AP50"] > 0.5
