"""One training step: updated weights, clipped gradients, and unchanged state."""

import copy

import pytest
import torch
from torch import nn

from src.core import NumericsError
from src.core.contracts import Lesson
from src.optim.ema import ModelEMA
from src.solver.numerics import NumericsGuard
from src.solver.training_step import MAX_OVERFLOWS, TrainStep


class Model(nn.Module):
    """A detector in miniature: one number, batch statistics, and whatever its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images, targets=None):
        return {"pred_logits": (self.weight * self.norm(images)).relu().mean()}


def criterion(outputs, targets):
    return {
        "loss_a": (outputs["pred_logits"] - 1) ** 2,
        "loss_b": 0.5 * outputs["pred_logits"].abs(),
    }


def make_step(model, criterion=criterion, **changes) -> TrainStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {
        "ema": ModelEMA(model, 0.5, 0),
        "scaler": None,
        "amp_dtype": None,
        "clip_max_norm": 0.1,
        "guard": NumericsGuard(1000),
    } | changes
    return TrainStep(
        model=model,
        criterion=criterion,
        optimizer=optimizer,
        device=torch.device("cpu"),
        **settings,
    )


TARGETS = [
    {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.long),
        "image_path": "a.jpg",
    }
]


def snapshot(step: TrainStep) -> dict:
    return copy.deepcopy(
        {"model": step.model.state_dict(), "ema": step.ema.state_dict()}
    )


def same(a, b) -> bool:
    if isinstance(a, dict):
        return all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_step_moves_weights_and_average_and_returns_the_terms():
    step = make_step(Model().train())
    before = snapshot(step)
    losses = step(0, [(torch.rand(2, 3, 4, 4), TARGETS)])
    assert (
        set(losses) == {"loss_a", "loss_b"}
        and not losses["loss_a"].requires_grad
    )
    assert (
        step.model.weight != before["model"]["weight"] and step.ema.updates == 1
    )


def test_the_gradient_is_clipped():
    model = Model().train()
    step = make_step(
        model,
        lambda outputs, targets: {"loss": 1e6 * outputs["pred_logits"]},
        clip_max_norm=0.1,
    )
    before = {k: v.clone() for k, v in model.named_parameters()}
    step(0, [(torch.rand(2, 3, 4, 4), TARGETS)])
    moved = (
        torch.cat(
            [
                (p.detach() - before[k]).flatten()
                for k, p in model.named_parameters()
            ]
        )
        .norm()
        .item()
    )
    assert moved == pytest.approx(0.1 * 0.1, rel=1e-4)


class Scaled(nn.Module):
    """A model whose output, and therefore gradient, is the mean of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images, targets=None):
        return {"pred_logits": self.weight * images.mean()}


def identity(outputs, targets):
    return {"loss": outputs["pred_logits"].sum()}


def constant(images: int, value: float):
    return torch.full((images, 3, 2, 2), value), TARGETS * images


def test_a_batch_counts_in_its_window_by_its_images():
    step = make_step(Scaled().train(), identity, clip_max_norm=0.0)
    losses = step(0, [constant(3, 1.0), constant(1, 5.0)])
    gradient = (3 * 1.0 + 1 * 5.0) / 4
    assert losses["loss"].item() == pytest.approx(gradient)
    assert step.model.weight.item() == pytest.approx(1 - 0.1 * gradient)


@pytest.mark.parametrize(("limit", "gradient"), [(0.0, 2.0), (0.1, 0.1)])
def test_loss_scaling_changes_neither_the_step_nor_what_is_clipped(
    limit, gradient
):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    step = make_step(
        Scaled().train(), identity, clip_max_norm=limit, scaler=scaler
    )
    step(0, [constant(2, 2.0)])
    assert step.model.weight.item() == pytest.approx(
        1 - 0.1 * gradient, rel=1e-4
    )


class Overflowing(torch.autograd.Function):
    """Return the input; its gradient is infinite."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope * float("inf")


def overflowing(outputs, targets):
    return {"loss": Overflowing.apply(outputs["pred_logits"]).sum()}


def test_a_step_that_loss_scaling_leaves_out_is_not_averaged():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    step = make_step(Scaled().train(), overflowing, scaler=scaler)
    before = snapshot(step)
    assert step(0, [constant(2, 2.0)]) is not None
    assert same(before, snapshot(step)) and step.ema.updates == 0
    assert scaler.get_scale() == 512.0


def test_with_loss_scaling_a_loss_that_is_not_finite_moves_no_weight():
    """The gradient is finite, so that loss scaling alone would let the step pass."""

    def infinite_loss(outputs, targets):
        return {
            "loss": outputs["pred_logits"].sum(),
            "constant": torch.tensor(float("inf")),
        }

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    step = make_step(Scaled().train(), infinite_loss, scaler=scaler)
    before = snapshot(step)
    assert step(0, [constant(2, 2.0)]) is None
    assert same(before, snapshot(step)) and step.guard.in_a_row == 1


def test_endless_overflow_ends_the_run_while_the_scale_is_still_above_zero():
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    step = make_step(Scaled().train(), overflowing, scaler=scaler)
    before = snapshot(step)
    passed = 0
    with pytest.raises(NumericsError):
        for number in range(1000):
            passed += step(number, [constant(2, 2.0)]) is not None
    assert passed == MAX_OVERFLOWS
    assert scaler.get_scale() > 0 and same(before, snapshot(step))


def test_a_step_after_overflows_is_as_without_them():
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    step = make_step(Scaled().train(), overflowing, scaler=scaler)
    for number in range(MAX_OVERFLOWS):
        step(number, [constant(2, 2.0)])
    step.criterion = identity
    assert step(MAX_OVERFLOWS, [constant(2, 2.0)]) is not None
    assert step.model.weight.item() == pytest.approx(1 - 0.1 * 0.1, rel=1e-4)
    assert step.guard.in_a_row == 0 and step.ema.updates == 1


def test_a_loss_that_is_not_finite_changes_nothing(caplog):
    step = make_step(Model().train())
    before = snapshot(step)
    assert step(3, [(torch.full((2, 3, 4, 4), float("nan")), TARGETS)]) is None
    assert same(before, snapshot(step))
    assert (
        "step 3 skipped: the input image is not finite" in caplog.text
        and "a.jpg" in caplog.text
    )


def test_a_gradient_that_is_not_finite_changes_nothing_although_the_loss_is_fine(
    caplog,
):
    def no_slope_at_zero(outputs, targets):
        return {
            "loss": (outputs["pred_logits"].sum() * 0).sqrt()
        }  # 0 with an infinite slope

    step = make_step(Model().train(), no_slope_at_zero)
    before = snapshot(step)
    assert step(3, [(torch.rand(2, 3, 4, 4), TARGETS)]) is None
    assert same(before, snapshot(step))
    assert "gradient of" in caplog.text


def test_an_error_of_the_criterion_about_numbers_drops_the_step(caplog):
    def broken(outputs, targets):
        raise NumericsError("matching cost_class is not finite for image 0")

    step = make_step(Model().train(), broken)
    before = snapshot(step)
    assert step(0, [(torch.rand(2, 3, 4, 4), TARGETS)]) is None
    assert (
        same(before, snapshot(step))
        and "matching cost_class is not finite for image 0" in caplog.text
    )


def test_bfloat16_autocast_reaches_the_model_and_not_the_targets():
    seen = []

    class Watching(Model):
        def forward(self, images, targets=None):
            seen.append((images @ images.mT).dtype)
            return super().forward(images)

    make_step(Watching().train(), amp_dtype=torch.bfloat16)(
        0, [(torch.rand(2, 3, 4, 4), TARGETS)]
    )
    assert seen == [torch.bfloat16]


class Distillation:
    """A distillation in miniature: a parameter that is pulled to zero, and a record of all calls."""

    weight = 1.0

    def __init__(self) -> None:
        self.parameter = nn.Parameter(torch.ones(1))
        self.calls = []

    def __call__(self, images):
        self.calls.append(f"loss of {len(images)}")
        return self.parameter.square().sum() * images.mean()

    def average_gradients(self):
        self.calls.append("average")

    def observe(self, parameters):
        norms = [float(p.grad.norm()) for p in parameters]
        self.calls.append(("observe", norms))


def step_with_distillation(criterion=criterion, **changes):
    """Return a step whose optimizer has the parameter of a distillation in a group of its own."""
    distillation = Distillation()
    step = make_step(
        Model().train(), criterion, distillation=distillation, **changes
    )
    step.optimizer.add_param_group({"params": [distillation.parameter]})
    return step, distillation


def test_the_loss_of_a_distillation_trains_its_own_parameters():
    step, distillation = step_with_distillation()
    losses = step(0, [(torch.rand(2, 3, 4, 4), TARGETS)])
    assert set(losses) == {"loss_a", "loss_b", "loss_distill"}
    assert distillation.parameter < 1


def test_the_batches_of_a_window_contribute_their_share_of_the_distillation():
    step, _ = step_with_distillation(exact=False)
    sizes = (1, 3)
    window = [(torch.full((n, 3, 4, 4), float(n)), TARGETS) for n in sizes]
    losses = step(0, window)
    expected = 1.0 * 1 / 4 + 3.0 * 3 / 4
    assert losses["loss_distill"].item() == pytest.approx(expected)


def test_gradients_are_averaged_over_ranks_then_clipped_then_observed():
    step, distillation = step_with_distillation(clip_max_norm=1e-3)
    step(0, [(torch.rand(2, 3, 4, 4), TARGETS)] * 2)
    *before, (observed, norms) = distillation.calls
    assert before == ["loss of 2", "loss of 2", "average"]
    assert observed == "observe"
    assert sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(
        1e-3, rel=1e-3
    )


def test_a_skipped_step_is_averaged_over_ranks_and_not_observed():
    def without_loss(outputs, targets):
        raise NumericsError("no loss")

    step, distillation = step_with_distillation(without_loss)
    assert step(0, [(torch.rand(2, 3, 4, 4), TARGETS)]) is None
    assert distillation.calls == ["average"]
    assert distillation.parameter == 1


class Teacher(Distillation):
    """A distillation whose teacher sees all batches of a window before the model."""

    decoder_weight = 1.0
    needs_criterion = True

    def match_classes(self, class_names, num_classes):
        raise AssertionError("the step does not match classes")

    def consult(self, batches):
        lessons = [Lesson(images, None) for images in batches]
        self.calls.append(f"lessons for {len(lessons)}")
        return lessons

    def teach(self, lesson, outputs, criterion, fraction):
        self.calls.append(f"teach {len(lesson.map)} of {fraction:g}")
        return {"loss_soft": self.parameter.square().sum() * fraction}


def step_with_teacher(**changes):
    distillation = Teacher()
    step = make_step(
        Model().train(), criterion, distillation=distillation, **changes
    )
    step.optimizer.add_param_group({"params": [distillation.parameter]})
    return step, distillation


def test_the_teacher_sees_a_window_before_its_first_forward_pass():
    step, distillation = step_with_teacher()
    window = [(torch.rand(n, 3, 4, 4), TARGETS) for n in (1, 3)]
    losses = step(0, window)
    *before, _ = distillation.calls
    assert before == [
        "lessons for 2",
        "teach 1 of 0.25",
        "teach 3 of 0.75",
        "average",
    ]
    assert losses["loss_soft"] == 1.0 and "loss_distill" not in losses


def test_the_teacher_runs_in_the_precision_of_the_step():
    seen = []

    class Looking(Teacher):
        def consult(self, batches):
            (images,) = batches
            seen.append((images @ images.mT).dtype)
            return [Lesson(images, None)]

    step = make_step(
        Model().train(), distillation=Looking(), amp_dtype=torch.bfloat16
    )
    step(0, [(torch.rand(2, 3, 4, 4), TARGETS)])
    assert seen == [torch.bfloat16]


def test_a_rehearsal_includes_the_teacher_and_changes_nothing():
    step, distillation = step_with_teacher()
    step.rehearse((torch.rand(2, 3, 4, 4), TARGETS))
    assert distillation.calls == ["lessons for 1", "teach 2 of 1"]
    assert distillation.parameter == 1 and distillation.parameter.grad is None


def test_the_time_of_the_teacher_is_measured():
    step, _ = step_with_teacher()
    assert step.teacher_seconds() is None
    step(0, [(torch.rand(2, 3, 4, 4), TARGETS)])
    assert step.teacher_seconds() > 0


@pytest.mark.parametrize("make", [step_with_teacher, step_with_distillation])
def test_the_time_of_the_teacher_is_that_of_a_whole_step(make):
    step, _ = make(exact=False)
    batch = (torch.rand(2, 3, 4, 4), TARGETS)
    step(0, [batch, batch, batch])
    passes = 1 if make is step_with_teacher else 3
    mean = step.teacher_clock.mean()
    assert step.teacher_seconds() == pytest.approx(passes * mean)


def test_a_step_without_a_teacher_has_no_time_of_one():
    step = make_step(Model().train())
    step(0, [(torch.rand(2, 3, 4, 4), TARGETS)])
    assert step.teacher_seconds() is None
