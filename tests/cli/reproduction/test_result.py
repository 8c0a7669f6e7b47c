"""The result of a reproduction: numbers of its log, a row of the table, and a comparison after one epoch."""

import json

import pytest

from src.cli.reproduction import result
from src.cli.reproduction.job import Job, find_model
from src.cli.reproduction.result import (
    about_first_epoch,
    describe_session,
    digest_of,
    machine_of,
    read_metrics,
    read_training,
    source_of,
    table_row,
)
from src.core import ConfigError, DataError, YAMLConfig
from src.core.coco_metrics import METRICS
from src.core.package_configs import package_config

VIT_S = package_config("configs/dfine/dfine_dinov3_s_coco.yml")
ENTRY = find_model("dfine_dinov3_s_coco")

SESSION = {
    "gpus": ["NVIDIA H100"] * 8,
    "cpu": "AMD EPYC",
    "changed_files": False,
}
RESULT = {
    "commit": "0123456789abcdef0123",
    "changed_files": False,
    "sessions": [SESSION],
    "hours": 14.25,
    "epochs": 80,
    "recipe_epochs": 80,
    "settings": [],
    "is_coco_2017": True,
    "input": [640, 640],
    "metrics": {name: 0.561 for name in METRICS},
}


def test_the_source_of_ap_has_commit_hardware_and_time():
    assert source_of(RESULT) == (
        "own training: commit 0123456789ab, 8 x NVIDIA H100, 14.2 h"
    )


def test_the_source_of_ap_says_what_is_not_the_recipe_on_coco():
    text = source_of(
        RESULT
        | {
            "changed_files": True,
            "epochs": 1,
            "settings": ["optimizer.lr=1"],
            "is_coco_2017": False,
        }
    )
    assert "with changes" in text
    assert text.endswith("1 of 80 epochs, -u optimizer.lr=1, not COCO 2017")


def test_all_machines_of_a_training_are_named_once():
    other = SESSION | {"gpus": ["A100", "H100", "A100"]}
    sessions = [SESSION, other, SESSION]
    text = source_of(RESULT | {"sessions": sessions})
    assert "8 x NVIDIA H100 and 2 x A100 + 1 x H100, 14.2 h" in text
    assert machine_of(SESSION | {"gpus": []}) == "AMD EPYC"


def test_the_row_is_that_of_the_table_of_models_with_the_ap():
    heading, _, row = table_row(ENTRY, RESULT).splitlines()
    cells = dict(zip(heading.split(" | "), row.split(" | ")))
    assert cells["COCO AP"] == "56.1"
    assert cells["source of AP"] == source_of(RESULT)
    assert "`dfine_dinov3_s_coco`" in row
    undefined = RESULT | {"metrics": {"AP": None}, "input": [768, 768]}
    row = table_row(ENTRY, undefined).splitlines()[-1]
    assert " | 768 | 25.6 (25.5) | - | - | - | own training" in row


def test_a_row_at_another_size_has_the_costs_of_that_size():
    entry = find_model("dfine_dinov3_s2_coco")
    (other, *_) = entry.other_inputs
    size = [other.input, other.input]
    lines = table_row(entry, RESULT | {"input": size}).splitlines()
    assert len(lines) == 3  # the heading, and one row
    assert (
        f" | {other.input} | 26.0 (25.9) | {other.gflops:.1f} | " in lines[-1]
    )
    assert " | 56.1 | own training" in lines[-1]
    wide = table_row(entry, RESULT | {"input": [640, 960]}).splitlines()[-1]
    assert " | - | 26.0 (25.9) | - | - | 56.1 | " in wide


@pytest.mark.parametrize(
    ("ap", "is_warning"),
    [(0.36, False), (0.2, False), (0.19, True), (None, True)],
)
def test_ap_after_one_epoch_is_compared_with_what_others_report(ap, is_warning):
    text, warned = about_first_epoch(
        ENTRY, RESULT | {"epochs": 1, "metrics": {"AP": ap}}
    )
    assert "report 40 AP for DEIMv2-L" in text and "36 if it is frozen" in text
    assert warned == is_warning
    assert ("a fault of weights, data or settings" in text) == is_warning


def test_the_models_of_deimv2_with_a_vit_are_compared_as_well():
    one = RESULT | {"epochs": 1, "metrics": {"AP": 0.4}}
    assert about_first_epoch(find_model("deimv2_l_coco"), one) is not None
    assert about_first_epoch(find_model("deimv2_n_coco"), one) is None


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("dfine_dinov3_s_coco", {"epochs": 2}),
        ("dfine_dinov3_s_coco", {"is_coco_2017": False}),
        ("dfine_n_coco", {}),
    ],
)
def test_only_one_epoch_of_coco_with_a_vit_is_compared(model, change):
    one = RESULT | {"epochs": 1} | change
    assert about_first_epoch(find_model(model), one) is None


def test_the_digest_ignores_the_machine_and_sees_the_recipe():
    def digest(**overrides):
        return digest_of(YAMLConfig(VIT_S, **overrides))

    own = digest()
    dataset = {"img_folder": "/elsewhere"}
    loader = {"dataset": dataset, "num_workers": 9}
    assert digest(output_dir="other", train_dataloader=loader) == own
    assert digest(epochs=1) != own
    assert digest(train_dataloader={"total_batch_size": 8}) != own


def write_log(run, *records):
    run.mkdir(exist_ok=True)
    lines = [json.dumps(record) + "\n" for record in records]
    (run / "log.txt").write_text("".join(lines))


def test_time_and_memory_are_those_of_all_epochs(tmp_path):
    record = {"n_parameters": 5, "best_epoch": 0, "peak_memory_mb": 1000.0}
    write_log(
        tmp_path,
        {"epoch": 0, "seconds": 1800, **record},
        {"epoch": 1, "seconds": 3600, **record, "peak_memory_mb": 2000.0},
    )
    with (tmp_path / "log.txt").open("a") as log:
        log.write('[]\n{"epoch": 2, "seco')  # others are ignored
    assert read_training(tmp_path) == {
        "epochs": 2,
        "hours": 1.5,
        "best_epoch": 1,
        "peak_memory_gb": 2.0,
        "parameters": 5,
    }


def test_the_memory_of_a_cpu_is_not_known(tmp_path):
    write_log(tmp_path, {"epoch": 0, "seconds": 1, "peak_memory_mb": 0})
    assert read_training(tmp_path)["peak_memory_gb"] is None


@pytest.mark.parametrize("content", [None, "{", "[]", '{"AP": 0.5}'])
def test_an_evaluation_that_cannot_be_read_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "eval.json").write_text(content)
    with pytest.raises(DataError, match="eval.json is not the result") as error:
        read_metrics(tmp_path)
    assert "delete it and run this command again" in str(error.value)


def test_the_hardware_is_what_the_doctor_has_found(tmp_path, monkeypatch):
    ranks = [{"numbers": {"gpus": [{"name": name}]}} for name in "AB"]
    checks = [
        {"name": "software", "numbers": {"CUDA": "13.0", "driver": "580.1"}},
        {"name": "GPUs", **ranks[0], "by_rank": ranks},
        {"name": "processor", "numbers": {"cores": 64}},
    ]
    (tmp_path / "doctor.json").write_text(json.dumps({"checks": checks}))
    monkeypatch.setattr(result, "code_version", lambda: "abc+changes")
    job = Job(ENTRY, (), tmp_path, processes=2)
    session = describe_session(job)
    assert session["gpus"] == ["A", "B"]
    assert (session["CUDA"], session["driver"]) == ("13.0", "580.1")
    assert session["cores"] == 64
    assert (session["commit"], session["changed_files"]) == ("abc", True)
    del checks[1]["by_rank"]  # one process, which sees all GPUs
    checks[1]["numbers"]["gpus"] = [{"name": name} for name in "ABC"]
    (tmp_path / "doctor.json").write_text(json.dumps({"checks": checks}))
    assert describe_session(Job(ENTRY, (), tmp_path))["gpus"] == ["A"]
    on_cpu = Job(ENTRY, (), tmp_path, device="cpu")
    assert describe_session(on_cpu)["gpus"] == []


def test_only_rows_of_this_project_are_replaced(tmp_path):
    result.refuse_foreign_results(tmp_path)
    result.write_result(tmp_path, RESULT, table_row(ENTRY, RESULT))
    result.refuse_foreign_results(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="result.json would be replaced"):
        result.refuse_foreign_results(tmp_path)
