"""Non-finite numbers, diverging learning rates, out of memory within a step: F35, F36, F37 and F41."""

import pytest
import torch
from torch import nn

from src.core.errors import NumericsError
from src.runtime.distributed import rank
from src.runtime.process import explain
from src.runtime.weight_files import read_tensor_file
from src.solver.numerics import NumericsGuard, keep_batch
from src.solver.training_step import TrainStep
from tests.faults.runs import final_state, run, same
from tests.fixtures.processes import on_ranks

SHORT = {"epochs": 2, "grad_accum_steps": 1, "save_every_steps": 1}


def weights(step: TrainStep) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone()
        for part in (step.model, step.ema.module)
        for name, tensor in part.state_dict().items()
    }


@pytest.fixture
def faulty(monkeypatch):
    """Put faults into steps, and check that these change neither model nor EMA; return the steps reached."""

    def install(steps, fault) -> list[int]:
        met, ordinary = [], TrainStep.__call__

        def call(self, step, window):
            if step not in steps:
                return ordinary(self, step, window)
            met.append(step)
            before = weights(self)
            with pytest.MonkeyPatch.context() as patch:
                fault(patch, self)
                losses = ordinary(self, step, window)
            assert losses is None and same(weights(self), before)
            return losses

        monkeypatch.setattr(TrainStep, "__call__", call)
        return met

    return install


def bad_loss(patch: pytest.MonkeyPatch, step: TrainStep) -> None:
    ordinary = step.criterion.forward
    patch.setattr(
        step.criterion,
        "forward",
        lambda *a, **k: {
            name: value * float("nan")
            for name, value in ordinary(*a, **k).items()
        },
    )


def bad_gradient(patch: pytest.MonkeyPatch, step: TrainStep) -> None:
    ordinary = nn.utils.clip_grad_norm_

    def clip(parameters, limit):
        parameters[0].grad.view(-1)[0] = float("inf")
        return ordinary(parameters, limit)

    patch.setattr(nn.utils, "clip_grad_norm_", clip)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(bad_loss, "is not finite"), (bad_gradient, "the gradient of")],
)
@pytest.mark.parametrize("steps", [{3}, {0, 5, 11}])
def test_f35_f36_a_step_with_a_bad_number_is_skipped_logged_with_its_images_and_changes_nothing(
    tiny_data, tmp_path, faulty, caplog, fault, expected, steps
):
    met = faulty(steps, fault)
    assert run(tiny_data, tmp_path, **SHORT)
    assert set(met) == steps
    lines = [line for line in caplog.messages if "skipped" in line]
    assert len(lines) == len(steps)
    assert all(
        expected in line and "on rank 0; images: " in line and ".jpg" in line
        for line in lines
    ), lines
    assert all(
        bool(torch.isfinite(value).all())
        for name, value in final_state(tmp_path).items()
        if name.startswith("/model")
    )


def test_f35_f37_ten_bad_steps_in_a_row_end_the_run_and_the_last_good_state_and_the_batch_stay(
    tiny_data, tmp_path, faulty
):
    faulty(range(2, 50), bad_loss)
    with pytest.raises(NumericsError) as caught:
        run(tiny_data, tmp_path, **SHORT)
    code, message = explain(caught.value)
    assert (
        code == 5
        and message.startswith("diverged at step 11: 10 steps in a row")
        and "last.pth" in message
    )
    assert (
        f"its batch is saved in {tmp_path}/bad_batch.pth; try a lower learning rate"
        in message
    )
    assert all(
        bool(torch.isfinite(value).all())
        for value in read_tensor_file(tmp_path / "last.pth")["model"].values()
        if value.is_floating_point()
    )
    kept = torch.load(tmp_path / "bad_batch.pth", weights_only=True)
    (batch,) = kept["batches"]
    target = batch["targets"][0]
    assert (kept["step"], kept["rank"]) == (11, 0) and kept["reason"].endswith(
        "is not finite"
    )
    assert (
        batch["images"].shape == (4, 3, 64, 64) and len(batch["targets"]) == 4
    )
    assert (
        target["boxes"].shape[1] == 4
        and target["image_path"].endswith(".jpg")
        and int(target["image_id"]) > 0
    )
    assert all(bool(value.isnan()) for value in kept["losses"][0].values())


def test_f37_a_learning_rate_that_diverges_ends_the_run_with_finite_weights_and_the_batch_kept(
    tiny_data, tmp_path
):
    with pytest.raises(NumericsError) as caught:
        run(
            tiny_data,
            tmp_path,
            **SHORT | {"epochs": 4},
            optimizer={"lr": 1e12},
            lr_warmup_scheduler={"warmup_duration": 1},
            clip_max_norm=0.0,
        )
    code, message = explain(caught.value)
    assert (
        code == 5
        and "diverged" in message
        and f"its batch is saved in {tmp_path}/bad_batch.pth" in message
        and "a lower learning rate" in message
    )
    assert (
        read_tensor_file(tmp_path / "last.pth")["progress"]["total_steps"] > 0
    )
    kept = read_tensor_file(tmp_path / "bad_batch.pth")
    assert (
        kept["reason"] in message and kept["batches"][0]["images"].shape[1] == 3
    )


def test_f37_of_several_ranks_the_one_to_blame_keeps_its_batch(tmp_path):
    def drop() -> str | None:
        guard = NumericsGuard(100, in_a_row=9, folder=tmp_path)
        try:
            guard.dropped(
                7,
                "loss_vfl is not finite" if rank() else None,
                [(torch.zeros(1, 3, 2, 2), [{"image_path": f"{rank()}.jpg"}])],
            )
        except NumericsError as error:
            return str(error)

    ours, theirs = on_ranks(2, drop)
    assert (
        f"the batch of rank 1 is in {tmp_path}/bad_batch.pth" in ours
        and f"its batch is saved in {tmp_path}/bad_batch.pth" in theirs
    )
    assert read_tensor_file(tmp_path / "bad_batch.pth")["batches"][0][
        "targets"
    ] == [{"image_path": "1.jpg"}]


def test_f37_a_disk_without_room_for_the_batch_changes_nothing_but_the_message(
    tmp_path,
):
    assert keep_batch(tmp_path / "none", 1, "", []).startswith(
        "the batch could not be saved ("
    )


def test_f41_lack_of_memory_in_a_step_is_exit_6_with_what_takes_less_and_the_state_stays(
    tiny_data, tmp_path, monkeypatch
):
    assert not run(tiny_data, tmp_path, stop_after=4, **SHORT)
    before = (tmp_path / "last.pth").read_bytes()

    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB."
        )

    monkeypatch.setattr(TrainStep, "_forward", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run(tiny_data, tmp_path, **SHORT)
    code, message = explain(caught.value)
    assert code == 6 and "Tried to allocate 2.00 GiB" in message
    assert all(
        name in message
        for name in (
            "total_batch_size",
            "grad_accum_steps",
            "gradient_checkpointing",
        )
    )
    assert (tmp_path / "last.pth").read_bytes() == before
