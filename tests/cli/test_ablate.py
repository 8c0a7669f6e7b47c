"""The command of ablation studies. Trainings are imitated, except for one."""

import json
from pathlib import Path

import pytest

from src.cli import ablate
from src.cli.ablation.plan import load_plan
from src.cli.ablation.runs import sides_of
from tests.fixtures.ablation_plans import fake_trainer, write_plan
from tests.fixtures.tiny import ROOT, TINY_MODEL, write_tiny_data

LARGE = "optimizer.lr=0.002"

PLANS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.glob("configs/ablation/*.yml")
    if path.name not in ("tasks.yml", "pretrained_tasks.yml", "teacher.yml")
)
"""Plans of the project, without the files that they include."""


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    """Return a function that runs the command; it returns exit code, output and errors."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("src.cli.ablation.training.POLL_SECONDS", 0.02)

    def run(*words, behaviour=None, plan=None):
        trainer = fake_trainer(tmp_path, monkeypatch, behaviour)
        monkeypatch.setattr(ablate, "TRAINER", trainer)
        path = write_plan(tmp_path, **(plan or {}))
        results = ["--results", str(tmp_path / "results")]
        with pytest.raises(SystemExit) as end:
            ablate.main([str(path), *results, *words])
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    return run


def test_a_study_ends_with_a_table_in_several_forms(study, tmp_path):
    code, out, _ = study(behaviour={LARGE: {"AP": 0.75}})
    assert code == 0
    row = "| large | 0.750 | 0.760 | 0.755 | 0.007 | 0.750 | 0.655 | +0.250 +- 0.000 | better |"
    assert row in out
    assert out.splitlines()[-1] == "4 of 4 runs are complete"
    results = tmp_path / "results"
    assert row in (results / "lr-shapes.md").read_text()
    content = json.loads((results / "lr-shapes.json").read_text())
    assert content["variants"][1]["difference"]["verdict"] == "better"
    assert (results / "lr-shapes.png").stat().st_size > 1000


def test_the_list_has_states_costs_and_variants(study):
    study("--only", "small", "--seeds", "0")
    code, out, _ = study("--list")
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == 5
    assert lines[0].startswith("complete ")
    assert lines[0].endswith("seed 0: lr/shapes/small")
    assert lines[1].startswith("not started     0.0 of 6 min")
    assert lines[-1] == "4 runs; about 18 CPU minutes are left"


def test_the_table_of_a_study_in_progress_trains_nothing(study):
    study("--only", "small")
    code, out, _ = study("--table")
    assert code == 0
    assert "| large | - | - |" in out
    assert out.splitlines()[-1] == "2 of 4 runs are complete"


def test_nothing_is_written_before_a_run_is_complete(study, tmp_path):
    code, out, _ = study("--table")
    assert code == 0
    assert "no run is complete" in out
    assert not (tmp_path / "results").exists()


def test_a_failed_run_ends_the_command_with_code_1_after_the_table(study):
    code, out, err = study(behaviour={LARGE: {"fail": True}})
    assert code == 1
    assert "| small (baseline) | 0.500 | 0.510 |" in out
    assert "runs that failed: 2 (" in err.splitlines()[-1]


def test_unequal_steps_are_refused_with_code_3(study):
    code, _, err = study(behaviour={LARGE: {"steps": 11}})
    assert code == 3
    assert "different numbers of optimizer steps" in err


def test_two_plans_share_a_baseline(study, tmp_path):
    study()
    variants = {"small": None, "larger": {"settings": ["optimizer.lr=0.003"]}}
    changes = {"name": "second", "variants": variants}
    _, out, _ = study("--list", plan=changes)
    states = [line.split("  ")[0] for line in out.splitlines()[:4]]
    assert states == ["complete", "not started", "complete", "not started"]


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--task", "shape"], "--task shape: expected one of shapes; did you"),
        (["--only", "larg"], "did you mean 'large'?"),
        (["--set", "data=1"], "--set data=1: expected NAME=VALUE"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_code_2(study, words, expected):
    code, _, err = study(*words)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err


def test_other_data_than_at_the_start_are_reported(study):
    settings = ["train_dataloader.dataset.img_folder=$DATA"]
    variants = {"small": None, "large": {"settings": settings}}
    changes = {"variants": variants}
    study("--set", "DATA=/data/a", plan=changes)
    _, out, _ = study("--set", "DATA=/data/b", plan=changes)
    assert "was trained with DATA=/data/a, now DATA=/data/b" in out


@pytest.mark.parametrize("path", PLANS)
def test_a_plan_of_this_project_is_valid_and_its_variants_differ(
    path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    plan = load_plan(path)
    assert plan.name == Path(path).stem
    for task in plan.tasks.values():
        assert task.cpu_minutes
        sides = sides_of(plan, task, plan.seeds)
        groups = {side.runs[plan.seeds[0]].group for side in sides}
        assert len(groups) == len(sides)


@pytest.mark.slow
def test_a_real_study_is_interrupted_resumed_and_compared(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    data = write_tiny_data(tmp_path / "data")
    config = tmp_path / "tiny.yml"
    demo = ROOT / "configs/dfine/demo/dfine_dinov3_demo.yml"
    settings = {
        "__include__": [str(demo)],
        "epochs": 2,
        "pictures": False,
        **TINY_MODEL,
        "train_dataloader": {
            **data.settings["train_dataloader"],
            "total_batch_size": 4,
            "collate_fn": {"stop_epoch": 1},
        },
        "val_dataloader": data.settings["val_dataloader"],
    }
    config.write_text(json.dumps(settings))
    tasks = {"shapes": {"config": str(config)}}
    path = write_plan(tmp_path, tasks=tasks, seeds=[0])
    words = [str(path), "--results", str(tmp_path / "results"), "--jobs", "2"]

    def run(*more) -> str:
        with pytest.raises(SystemExit) as end:
            ablate.main([*words, *more])
        assert not end.value.code
        return capsys.readouterr().out

    assert run("--minutes", "0.01").endswith("0 of 2 runs are complete\n")
    out = run()
    assert "Optimizer steps: 12." in out
    assert out.endswith("2 of 2 runs are complete\n")
