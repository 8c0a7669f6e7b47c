"""`--batch auto` in whole runs: the choice is logged, stored and kept by a resumed run."""

import pytest
import yaml

from src.solver import automatic_batch
from tests.fixtures.commands import read_log, run_python, write_tiny_config
from tests.fixtures.train_here import train_here


def settings_of(run):
    """Return (batch, accumulation, base of the rates) in the configuration of a run."""
    config = yaml.safe_load((run / "config.yml").read_text())
    return (
        config["train_dataloader"]["total_batch_size"],
        config.get("grad_accum_steps", 1),
        config.get("lr_base_batch_size"),
    )


@pytest.fixture
def config(tiny_data, tmp_path):
    return write_tiny_config(
        tmp_path, tiny_data, epochs=2, train_dataloader={"total_batch_size": 8}
    )


def test_the_batch_that_fits_is_accumulated_to_that_of_the_recipe(
    config, tmp_path, monkeypatch
):
    tried = []

    def estimate(peak, budget, most, share, waiting):
        tried.append((most, share, peak(1) > 0))
        return 3

    monkeypatch.setattr(automatic_batch, "estimate_on_cpu", estimate)
    run = tmp_path / "run"
    words = ("-c", config, "--seed=1", "--batch", "auto", "-u", "epochs=1")
    ended = train_here(*words)
    assert ended.code == 0, ended.err
    assert tried == [(8, 8, True)]
    assert settings_of(run) == (2, 4, None)
    assert (
        "total_batch_size: auto chose 3 images per rank, the largest that fits: total_batch_size=2 "
        "grad_accum_steps=4, 8 images in a step, the recipe has 8"
    ) in ended.out
    # the same command resumes without a trial, and so does the checkpoint alone
    train_here("-c", config, "--batch", "auto", "-r", "auto", "--override")
    train_here("-r", run / "last.pth", "--override", "-u", "epochs=3")
    assert len(tried) == 1
    assert settings_of(run) == (2, 4, None)
    assert [record["steps"] for record in read_log(run)] == [3, 6, 9]


@pytest.mark.slow
def test_a_larger_batch_scales_the_learning_rates(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr(automatic_batch, "LEAST_STEPS", 1)
    words = ("-c", config, "--seed=1", "--batch", "auto", "-u", "epochs=1")
    ended = train_here(*words)
    assert ended.code == 0, ended.err
    assert settings_of(tmp_path / "run") == (24, 1, 8)
    assert "learning rates are scaled by 1.73" in ended.out
    assert "larger ones are not used without a number" in ended.out


@pytest.mark.slow
def test_the_recipe_has_a_larger_batch_than_there_are_images(
    tiny_data, tmp_path
):
    loader = {"train_dataloader": {"total_batch_size": 40}}
    config = write_tiny_config(tmp_path, tiny_data, epochs=1, **loader)
    ended = train_here("-c", config, "--seed=1", "--batch", "auto")
    assert ended.code == 0, ended.err
    assert settings_of(tmp_path / "run") == (24, 1, 40)
    assert "learning rates are scaled by 0.775" in ended.out


@pytest.mark.slow
def test_the_trial_does_not_change_the_run(config, tmp_path):
    def losses(*arguments):
        train_here("-c", config, "--seed=1", *arguments, "-u", "epochs=1")
        return [record["train_loss"] for record in read_log(tmp_path / "run")]

    chosen = losses("--batch", "auto")
    assert losses("--batch", "8", "--overwrite") == chosen


@pytest.mark.slow
def test_ranks_use_the_smallest_batch_of_all(config, tmp_path):
    """The second rank finds that only one image fits."""
    script = tmp_path / "unequal.py"
    script.write_text(
        "import os, runpy, sys\n"
        "from src.solver import automatic_batch\n"
        "rank = int(os.environ['RANK'])\n"
        "automatic_batch.estimate_on_cpu = lambda *_: (3, 1)[rank]\n"
        "sys.argv = ['train.py', *sys.argv[1:]]\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    done = run_python(
        script,
        *("-c", config, "--seed=1", "--batch", "auto", "-u", "epochs=1"),
        ranks=2,
        PYTHONPATH=".",
    )
    assert done.returncode == 0, done.stderr
    assert settings_of(tmp_path / "run") == (2, 4, None)
    assert "chose 1 image per rank" in done.stdout
    assert "(by rank: 3, 1)" in done.stdout
