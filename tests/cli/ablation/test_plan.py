"""Plans of ablation studies, and what is said about mistakes in them."""

import re

import pytest

from src.cli.ablation.plan import load_plan
from src.core.errors import ConfigError
from tests.fixtures.ablation_plans import write_plan


def refusal(folder, **changes) -> str:
    path = write_plan(folder, **changes)
    with pytest.raises(ConfigError) as caught:
        load_plan(path)
    return str(caught.value).replace(str(path), "PLAN")


def variants(**changes) -> dict:
    return {"small": None, "large": changes}


def test_a_plan_is_read_with_its_defaults(tmp_path):
    plan = load_plan(write_plan(tmp_path, seeds=None))
    assert plan.name == "lr"
    assert plan.seeds == (0, 1, 2)
    assert plan.equal_steps
    assert plan.tasks["shapes"].cpu_minutes == 6.0
    assert plan.variants["large"].settings == ("optimizer.lr=0.002",)
    assert plan.variants["small"].settings == ()


def test_plans_share_tasks_by_an_include(tmp_path):
    (tmp_path / "tasks.yml").write_text("tasks: {shapes: {config: demo.yml}}")
    path = write_plan(tmp_path, tasks=None)
    path.write_text("__include__: [tasks.yml]\n" + path.read_text())
    assert load_plan(path).tasks["shapes"].config == "demo.yml"


def test_an_unknown_key_is_reported_with_the_nearest_one(tmp_path):
    assert refusal(tmp_path, base_line="small").startswith(
        "PLAN:15: base_line is not a key of a plan; did you mean 'baseline'?; known keys here: name,"
    )


def test_an_unknown_key_of_a_variant_is_reported_with_its_place(tmp_path):
    text = refusal(tmp_path, variants=variants(setting=["a=1"]))
    assert re.match(
        r"PLAN:\d+: variants.large.setting is not a key of a plan; did you mean 'settings'\?",
        text,
    )


def test_an_unknown_baseline_is_reported_with_the_nearest_variant(tmp_path):
    text = refusal(tmp_path, baseline="smal")
    assert text.endswith(
        "baseline is 'smal', expected one of the variants (small, large); did you mean 'small'?"
    )


@pytest.mark.parametrize("key", ["question", "baseline"])
def test_a_missing_key_is_named(tmp_path, key):
    text = refusal(tmp_path, **{key: None})
    assert f"{key} is not set; a plan needs it" in text


@pytest.mark.parametrize("key", ["tasks", "variants"])
def test_an_empty_group_is_named(tmp_path, key):
    assert f"{key} is empty" in refusal(tmp_path, **{key: None})


def test_a_single_variant_is_refused(tmp_path):
    text = refusal(tmp_path, variants={"small": None})
    assert "expected at least two variants" in text


@pytest.mark.parametrize(
    "seeds, expected",
    [
        ([0, -1], "expected a list of integers from 0"),
        ([0, True], "expected a list of integers from 0"),
        ([], "expected a list of integers from 0"),
        (3, "expected a list of integers from 0"),
        ([1, 1], "expected every number once"),
    ],
)
def test_wrong_seeds_are_refused(tmp_path, seeds, expected):
    assert expected in refusal(tmp_path, seeds=seeds)


@pytest.mark.parametrize("cost", [0, -1, "much", True])
def test_a_cost_that_is_not_positive_is_refused(tmp_path, cost):
    text = refusal(tmp_path, variants=variants(cost=cost))
    assert "variants.large.cost is" in text
    assert "expected a number above 0" in text


@pytest.mark.parametrize("item", ["optimizer.lr", 3])
def test_a_setting_without_a_value_is_refused(tmp_path, item):
    text = refusal(tmp_path, variants=variants(settings=[item]))
    assert f"variants.large.settings[0] is {item!r}, expected a setting" in text


def test_settings_that_are_not_a_list_are_refused(tmp_path):
    text = refusal(tmp_path, variants=variants(settings="a=1"))
    assert "expected a list of settings" in text


def test_a_variant_that_is_not_a_mapping_is_refused(tmp_path):
    text = refusal(tmp_path, variants={"small": None, "large": "a=1"})
    assert text.endswith("variants.large is 'a=1', expected a mapping")


def test_a_name_that_cannot_be_part_of_a_file_name_is_refused(tmp_path):
    text = refusal(tmp_path, variants={"small": None, "a/b": None})
    assert "the name 'a/b' in variants cannot be part of a file name" in text


def test_settings_for_an_unknown_task_are_refused(tmp_path):
    text = refusal(tmp_path, variants=variants(task_settings={"shape": []}))
    assert text.endswith(
        "variants.large.task_settings.shape is not a task of this plan (shapes); did you mean 'shapes'?"
    )


def test_an_unknown_teacher_is_refused(tmp_path):
    text = refusal(
        tmp_path, variants=variants(teacher="bg"), teachers={"big": None}
    )
    assert text.endswith(
        "variants.large.teacher is 'bg', expected one of the plan's teachers or a .pth file (big); did you "
        "mean 'big'?"
    )


def test_a_teacher_of_a_teacher_is_refused(tmp_path):
    text = refusal(tmp_path, teachers={"big": {"teacher": "x.pth"}})
    assert "a teacher cannot have a teacher" in text


def test_equal_steps_must_be_true_or_false(tmp_path):
    text = refusal(tmp_path, equal_steps="perhaps")
    assert "equal_steps is 'perhaps', expected true or false" in text
