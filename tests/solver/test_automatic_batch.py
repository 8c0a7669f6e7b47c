"""The largest batch that fits, and what follows from it."""

from types import SimpleNamespace

import pytest
import torch

from src.core import ConfigError
from src.core.errors import ResourceError
from src.solver import automatic_batch
from src.solver.automatic_batch import (
    BatchPlan,
    batch_of_recipe,
    estimate_on_cpu,
    is_automatic,
    keep_batch_of_run,
    largest_that_fits,
    largest_useful,
    plan_batch,
    share_of_rank,
)
from src.solver.start_config import open_configuration
from tests.fixtures.commands import write_tiny_config
from tests.fixtures.tiny import tiny_config

GB = 10**9
AUTO = {"train_dataloader": {"total_batch_size": "auto"}}


def line(fixed: float, per_image: float, limit: float = float("inf")):
    """Return a function for the peak of a step, which fails above a limit, and the list of its calls."""
    tried = []

    def peak(images):
        tried.append(images)
        used = int(fixed + per_image * images)
        if used > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return used

    return peak, tried


@pytest.mark.parametrize("most", [1, 2, 7, 16, 100])
@pytest.mark.parametrize("largest", [1, 2, 3, 5, 8, 16, 31, 99, 150])
def test_bisection_finds_the_largest_batch(largest, most):
    peak, tried = line(0, 1, limit=largest)
    assert largest_that_fits(peak, 1e9, most) == min(largest, most)
    assert max(tried) <= most
    assert len(tried) == len(set(tried)) <= 2 + 2 * most.bit_length()


def test_a_batch_that_fits_but_leaves_no_margin_is_not_chosen():
    peak, _ = line(0, 1, limit=100)
    assert largest_that_fits(peak, 90, 200) == 90


def test_not_even_one_image_fits():
    peak, _ = line(0, 1, limit=0.5)
    with pytest.raises(
        ResourceError, match="not even one image fits .*gradient_checkpointing"
    ):
        largest_that_fits(peak, 1e9, 8)


@pytest.fixture
def measured(monkeypatch):
    """Let the peak memory be one that can be measured."""
    monkeypatch.setattr(automatic_batch, "reset_peak_memory", lambda: True)


def test_the_batch_on_a_cpu_is_on_a_line_through_small_batches(measured):
    peak, tried = line(2 * GB, GB)
    assert estimate_on_cpu(peak, 20 * GB, 100, 16, 0) == 18
    assert max(tried) == 2


def test_small_images_are_measured_with_more_of_them(measured):
    peak, tried = line(GB, 0.01 * GB)
    assert estimate_on_cpu(peak, 2 * GB, 1000, 16, 0) == 100
    assert tried == [1, 2, 4, 8, 16]


def test_images_that_wait_in_the_loader_count_on_a_cpu(measured):
    peak, _ = line(2 * GB, GB)
    assert estimate_on_cpu(peak, 20 * GB, 100, 16, GB) == 9


def test_nothing_near_the_limit_is_tried_on_a_cpu(measured):
    peak, tried = line(GB, 0.01 * GB)
    assert estimate_on_cpu(peak, 1.05 * GB, 1000, 16, 0) <= 5
    assert max(tried) <= 5


def test_one_image_that_does_not_fit_on_a_cpu(measured):
    peak, _ = line(2 * GB, GB)
    with pytest.raises(ResourceError, match="not even one image fits"):
        estimate_on_cpu(peak, 2.5 * GB, 100, 16, 0)


def test_the_recipe_is_used_if_the_peak_cannot_be_measured(monkeypatch, caplog):
    monkeypatch.setattr(automatic_batch, "reset_peak_memory", lambda: False)
    peak, tried = line(0, 1)
    assert estimate_on_cpu(peak, 20 * GB, 100, 16, 0) == 16
    assert tried == []
    assert "cannot be measured" in caplog.text


@pytest.mark.parametrize(
    ("fits", "share", "plan"),
    [
        (16, 16, (16, 1)),
        (40, 16, (40, 1)),
        (15, 16, (8, 2)),
        (7, 16, (4, 4)),
        (3, 16, (2, 8)),
        (1, 16, (1, 16)),
        (7, 24, (6, 4)),
        (6, 17, (6, 3)),
        (16, 17, (9, 2)),
        (1, 1, (1, 1)),
    ],
)
def test_smaller_batches_are_accumulated_to_that_of_the_recipe(
    fits, share, plan
):
    assert plan_batch(fits, share) == BatchPlan(*plan)


def test_every_plan_fits_and_reaches_the_recipe():
    for share in range(1, 70):
        for fits in range(1, share):
            plan = plan_batch(fits, share)
            assert plan.per_rank <= fits
            assert share <= plan.effective(1) < share + plan.accumulation


def test_a_data_set_that_is_smaller_than_the_batch_of_the_recipe_is_one_batch():
    assert share_of_rank(32, 24, 1) == 24
    assert share_of_rank(32, 24, 2) == 12
    assert share_of_rank(32, 100, 2) == 16
    assert share_of_rank(32, 1, 2) == 1


def test_a_larger_batch_leaves_steps_and_stays_near_the_recipe():
    assert largest_useful(16, 100_000, 1) == 128
    assert largest_useful(16, 640, 1) == 64
    assert largest_useful(16, 100, 1) == 16
    assert largest_useful(16, 640, 2) == 32


def test_the_batch_of_the_recipe_is_that_before_the_override(
    tiny_data, tmp_path
):
    path = write_tiny_config(
        tmp_path,
        tiny_data,
        grad_accum_steps=2,
        train_dataloader={"total_batch_size": 6},
    )
    cfg = open_configuration(str(path), AUTO)
    assert is_automatic(cfg)
    assert batch_of_recipe(cfg, 1) == 12


def test_a_recipe_with_a_batch_per_rank(tiny_data, tmp_path):
    per_rank = {"batch_size": 3, "total_batch_size": None}
    path = write_tiny_config(tmp_path, tiny_data, train_dataloader=per_rank)
    cfg = open_configuration(
        str(path),
        {"train_dataloader": {"batch_size": None, "total_batch_size": "auto"}},
    )
    assert batch_of_recipe(cfg, 4) == 12


@pytest.mark.parametrize(
    "override", [{}, AUTO], ids=["in the file", "also in the command"]
)
@pytest.mark.parametrize(
    "recipe",
    [
        {"total_batch_size": 12},
        {"batch_size": 3, "total_batch_size": None},
    ],
    ids=["total", "per rank"],
)
def test_the_batch_of_the_recipe_is_that_of_an_included_file(
    tiny_data, tmp_path, recipe, override
):
    path = write_tiny_config(tmp_path, tiny_data, train_dataloader=recipe)
    own = tmp_path / "own.yml"
    own.write_text(
        f"__include__: [{path.name}]\n"
        "train_dataloader: {batch_size: null, total_batch_size: auto}\n"
    )
    cfg = open_configuration(str(own), override)
    assert is_automatic(cfg)
    assert batch_of_recipe(cfg, 4) == 12


def test_a_recipe_that_is_automatic_itself_needs_the_base_of_its_rates(
    tiny_data, tmp_path
):
    path = write_tiny_config(tmp_path, tiny_data, **AUTO)
    with pytest.raises(ConfigError, match="set lr_base_batch_size"):
        batch_of_recipe(open_configuration(str(path), {}), 1)
    cfg = open_configuration(str(path), {"lr_base_batch_size": 16})
    assert batch_of_recipe(cfg, 1) == 16


@pytest.mark.parametrize(
    ("schedule", "base"), [("OneCycleLR", None), ("MultiStepLR", 17)]
)
def test_rates_follow_a_rounded_batch_unless_the_schedule_has_its_own(
    schedule, base
):
    cfg = tiny_config()
    cfg.yaml_cfg["lr_scheduler"] = {"type": schedule}
    loader = SimpleNamespace(batch_sampler=SimpleNamespace(batch_size=1))
    automatic_batch._apply(cfg, loader, plan_batch(6, 17), 17, 1)
    assert cfg.settings.grad_accum_steps == 3
    assert cfg.settings.lr_base_batch_size == base


def test_the_batch_of_the_evaluation_is_a_number():
    cfg = tiny_config()
    cfg.set("val_dataloader", {"total_batch_size": "auto"}, "a test")
    with pytest.raises(
        ConfigError, match="supported only for train_dataloader"
    ):
        is_automatic(cfg)


def test_a_resumed_run_keeps_its_batch(caplog):
    caplog.set_level("INFO", "dfine")
    cfg = tiny_config(**AUTO)
    saved = tiny_config(
        grad_accum_steps=3,
        lr_base_batch_size=8,
        lr_scaling="sqrt",
        train_dataloader={"total_batch_size": 2},
    ).to_yaml()
    keep_batch_of_run(cfg, saved)
    assert cfg.yaml_cfg["train_dataloader"]["total_batch_size"] == 2
    assert cfg.settings.grad_accum_steps == 3
    assert cfg.settings.lr_base_batch_size == 8
    assert cfg.settings.lr_scaling == "sqrt"
    assert "the run keeps its batch of 2 with grad_accum_steps 3" in caplog.text
