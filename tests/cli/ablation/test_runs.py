"""The trainings that a plan needs, and which of them plans share."""

from pathlib import Path

import pytest

from src.cli.ablation.plan import load_plan
from src.cli.ablation.runs import (
    chosen,
    in_order,
    parse_variables,
    refuse_missing_variables,
    sides_of,
)
from src.core.errors import ConfigError
from tests.fixtures.ablation_plans import PLAN, runs, sides, write_plan

RESULTS = Path("results")
DATA = "train_dataloader.dataset.img_folder=$DATA/images"


def with_large(**changes) -> dict:
    return {"small": None, "large": changes}


def groups(folder, **changes) -> list[str]:
    return [side.runs[0].group for side in sides(folder, **changes)]


def test_variants_with_other_settings_have_other_folders(tmp_path):
    small, large = groups(tmp_path)
    assert small != large
    assert small.startswith("dfine_dinov3_demo-")


def test_the_same_settings_share_a_folder_however_they_are_written(tmp_path):
    task = {**PLAN["tasks"]["shapes"], "settings": ["optimizer.lr=2e-3"]}
    first = groups(tmp_path)[1]
    second = groups(
        tmp_path,
        tasks={"shapes": task},
        variants=with_large(settings=["epochs=3"]),
    )
    assert first == second[0] != second[1]


@pytest.mark.parametrize(
    "setting", ["print_freq=1", "val_dataloader.num_workers=3"]
)
def test_settings_that_do_not_change_results_are_not_part_of_the_folder(
    tmp_path, setting
):
    small, large = groups(tmp_path, variants=with_large(settings=[setting]))
    assert small == large


def test_seeds_share_the_folder_of_a_variant(tmp_path):
    first, second = runs(tmp_path)[:2]
    assert first.folder(RESULTS).parent == second.folder(RESULTS).parent
    assert second.folder(RESULTS).name == "seed1"


def test_a_wrong_setting_is_reported_with_plan_and_variant(tmp_path):
    with pytest.raises(ConfigError) as caught:
        sides(tmp_path, variants=with_large(settings=["optimizer.lrr=1"]))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'lr.yml'}, variant large on task")
    assert "lrr" in text


def test_a_folder_does_not_depend_on_where_the_data_are(tmp_path):
    plan_sides = sides(tmp_path, variants=with_large(settings=[DATA]))
    run = plan_sides[1].runs[0]
    assert run.variables() == {"DATA"}
    settings = run.overrides(RESULTS, {"DATA": "/data/a"})
    assert settings == ["train_dataloader.dataset.img_folder=/data/a/images"]


def test_a_missing_variable_is_reported_with_its_task(tmp_path):
    plan_sides = sides(tmp_path, variants=with_large(settings=[DATA]))
    refuse_missing_variables(plan_sides, {"DATA": "/data"})
    with pytest.raises(ConfigError, match="task shapes needs DATA; pass --set"):
        refuse_missing_variables(plan_sides, {})


def test_all_variants_of_a_seed_come_before_the_next_seed(tmp_path):
    both = sides(tmp_path)
    order = [(run.group, run.seed) for run in in_order(both)]
    small, large = (side.runs[0].group for side in both)
    assert order == [(small, 0), (large, 0), (small, 1), (large, 1)]


def test_a_teacher_comes_once_and_before_its_students(tmp_path):
    order = list(
        in_order(
            sides(
                tmp_path,
                teachers={"big": {"settings": ["epochs=24"]}},
                teacher_seed=7,
                variants=with_large(
                    teacher="big", settings=["tuning=$TEACHER"]
                ),
            )
        )
    )
    teachers = [run for run in order if run.seed == 7]
    assert len(teachers) == 1
    assert order.index(teachers[0]) == 1
    students = [run for run in order if run.teacher is not None]
    assert len(students) == 2
    expected = teachers[0].folder(RESULTS) / "best.pth"
    assert students[0].overrides(RESULTS, {}) == [f"tuning={expected}"]
    assert students[0].variables() == set()


def test_a_student_of_another_teacher_has_another_folder(tmp_path):
    found = set()
    for epochs in (24, 48):
        student = sides(
            tmp_path,
            teachers={"big": {"settings": [f"epochs={epochs}"]}},
            variants=with_large(teacher="big", settings=["tuning=$TEACHER"]),
        )[1]
        found.add(student.runs[0].group)
    assert len(found) == 2


def test_a_teacher_can_be_a_file(tmp_path):
    student = sides(
        tmp_path,
        variants=with_large(teacher="big.pth", settings=["tuning=$TEACHER"]),
    )[1].runs[0]
    assert student.teacher is None
    assert student.overrides(RESULTS, {}) == ["tuning=big.pth"]


def test_expected_minutes_are_those_of_the_task_times_the_cost(tmp_path):
    small, large = sides(tmp_path, variants=with_large(cost=2.5))
    assert small.runs[0].expected_minutes == 6
    assert large.runs[0].expected_minutes == 15


def test_settings_of_a_task_are_added_to_those_of_the_variant(tmp_path):
    variant = {
        "settings": ["epochs=3"],
        "task_settings": {"shapes": ["epochs=4"]},
    }
    plan = load_plan(write_plan(tmp_path, variants=with_large(**variant)))
    side = sides_of(plan, plan.tasks["shapes"], [5])[1]
    assert side.runs[5].settings == ("epochs=3", "epochs=4")
    assert side.runs[5].resolved["epochs"] == 4


def test_an_unknown_name_is_refused_with_the_nearest_one():
    assert chosen([], ["shapes", "bccd"], "--task") == ["shapes", "bccd"]
    assert chosen(["bccd"], ["shapes", "bccd"], "--task") == ["bccd"]
    with pytest.raises(ConfigError, match="did you mean 'shapes'"):
        chosen(["shape"], ["shapes", "bccd"], "--task")


@pytest.mark.parametrize("item", ["DATA", "DATA=", "data=/a", "=3"])
def test_a_variable_without_name_or_value_is_refused(item):
    assert parse_variables(["DATA=/a=b"]) == {"DATA": "/a=b"}
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        parse_variables([item])
