"""Whole runs: the evaluated weights, and the settings of a resumed run."""

import pytest
import torch

from src.runtime.distributed import rank
from src.runtime.weight_files import read_tensor_file
from src.solver import DetSolver, training_loop
from tests.fixtures.commands import read_log
from tests.fixtures.processes import on_ranks
from tests.fixtures.tiny import tiny_config
from tests.fixtures.trained_tiny import TRAINED

ONE_EPOCH = {
    "seed": 1,
    "epochs": 1,
    "tuning": str(TRAINED),
    "optimizer": {"lr": 1e-3},
    "train_dataloader": {"collate_fn": {"stop_epoch": None}},
}


@pytest.fixture
def evaluated(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """Collects copies of the weights that are evaluated."""
    states, ordinary = [], training_loop.evaluate

    def evaluate(model, *arguments, **options):
        states.append(
            {name: value.clone() for name, value in model.state_dict().items()}
        )
        return ordinary(model, *arguments, **options)

    monkeypatch.setattr(training_loop, "evaluate", evaluate)
    return states


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(value, two[name]) for name, value in one.items()
    )


def test_the_ema_is_evaluated_and_kept_and_not_the_model(
    tiny_data, tmp_path, evaluated
):
    DetSolver(
        tiny_config(tiny_data, tmp_path, **ONE_EPOCH), torch.device("cpu")
    ).fit()
    last, best = (
        read_tensor_file(tmp_path / name) for name in ("last.pth", "best.pth")
    )
    assert equal(evaluated[0], last["ema"]["module"]) and equal(
        evaluated[0], best["model"]
    )
    assert not equal(evaluated[0], last["model"])
    assert read_log(tmp_path)[0]["AP"] == best["meta"]["score"] > 0.1


def test_without_an_ema_the_model_is_evaluated(tiny_data, tmp_path, evaluated):
    DetSolver(
        tiny_config(tiny_data, tmp_path, **ONE_EPOCH, use_ema=False),
        torch.device("cpu"),
    ).fit()
    assert equal(evaluated[0], read_tensor_file(tmp_path / "last.pth")["model"])


@pytest.mark.slow
def test_ranks_evaluate_with_the_same_batch_statistics(
    tiny_data, tmp_path, evaluated
):
    """Each rank gathers statistics of its own images; those of rank 0 count for all."""

    def statistics() -> tuple[dict, dict]:
        torch.set_num_threads(1)
        unsynchronized = {}
        ordinary = training_loop.broadcast_tensors

        def broadcast_tensors(tensors):
            unsynchronized[len(unsynchronized)] = [
                tensor.clone() for tensor in tensors
            ]
            ordinary(tensors)

        training_loop.broadcast_tensors = broadcast_tensors
        DetSolver(
            tiny_config(tiny_data, tmp_path, **ONE_EPOCH), torch.device("cpu")
        ).fit()
        return evaluated[0], unsynchronized[len(unsynchronized) - 1]

    (first, before), (second, also_before) = on_ranks(2, statistics)
    assert rank() == 0 and equal(first, second)
    assert any(
        not torch.equal(one, two) for one, two in zip(before, also_before)
    ), "nothing was different"


def test_a_resumed_run_learns_with_the_settings_of_the_configuration(
    tiny_data, tmp_path
):
    DetSolver(
        tiny_config(tiny_data, tmp_path, **ONE_EPOCH), torch.device("cpu")
    ).fit()
    changed = {
        "epochs": 2,
        "optimizer": {"lr": 5e-4, "weight_decay": 0.03, "betas": [0.8, 0.99]},
    }
    cfg = tiny_config(
        tiny_data,
        tmp_path,
        **ONE_EPOCH | changed,
        resume=str(tmp_path / "last.pth"),
        override=True,
    )
    DetSolver(cfg, torch.device("cpu")).fit()
    assert [
        record["train_lr"] for record in read_log(tmp_path)
    ] == pytest.approx([1e-3, 5e-4])
    groups = read_tensor_file(tmp_path / "last.pth")["optimizer"][
        "param_groups"
    ]
    assert {group["initial_lr"] for group in groups} == {5e-4}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.03}
    assert {tuple(group["betas"]) for group in groups} == {(0.8, 0.99)}
