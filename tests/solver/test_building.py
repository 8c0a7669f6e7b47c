"""Parts of a run that can be built separately."""

import logging

import pytest
import torch
import yaml

from src.core.durations import RunLength
from src.core.errors import CheckpointError, ConfigError
from src.core.yaml_config import RunSettings, YAMLConfig
from src.detection.weight_file import WeightFile, read_weights
from src.solver.building import (
    amp_dtype_of_run,
    build_model,
    build_step,
    choose_seed,
    compile_backbone,
)
from src.solver.det_engine import seed_step
from src.solver.numerics import NumericsGuard
from src.solver.start_weights import Start
from tests.fixtures.processes import on_ranks
from tests.fixtures.states import small_state
from tests.fixtures.tiny import tiny_config, write_tiny_teacher
from tests.fixtures.trained_tiny import DETECTOR_TEACHER, TRAINED

CPU = torch.device("cpu")


def test_the_seed_that_is_given_counts():
    assert choose_seed(RunSettings(seed=5), Start()) == 5


def test_without_a_seed_a_random_one_is_used_and_logged(caplog):
    with caplog.at_level(logging.INFO, "dfine"):
        seed = choose_seed(RunSettings(), Start())
    assert f"this run uses --seed {seed}" in caplog.text


def test_a_resumed_run_keeps_its_seed_without_drawing_one(caplog):
    with caplog.at_level(logging.INFO, "dfine"):
        assert (
            choose_seed(RunSettings(), Start(state=small_state() | {"seed": 9}))
            == 9
        )
    assert not caplog.text


@pytest.mark.parametrize(
    ("use_amp", "named", "expected"),
    [(False, True, None), (True, False, None), (True, True, torch.bfloat16)],
)
def test_a_cpu_computes_in_bfloat16_only_if_it_was_named(
    use_amp, named, expected
):
    assert amp_dtype_of_run(use_amp, CPU, named=named) == expected


@pytest.mark.parametrize(
    ("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)]
)
def test_a_gpu_without_bf16_computes_in_fp16(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16
    )
    assert amp_dtype_of_run(True, torch.device("cuda"), named=False) == expected


BOX_HEAD = "decoder.pre_bbox_head.layers.0.weight"
CLASS_HEAD = "decoder.enc_score_head.bias"


@pytest.mark.parametrize(
    ("kind", "names", "loaded"),
    [
        ("new", ["disc", "square", "triangle", "ring"], False),
        ("resumed", ["disc", "square", "triangle", "ring"], False),
        ("evaluated", ["disc", "square", "triangle", "ring"], True),
        ("tuned", ["square", "ring", "triangle", "disc"], True),
    ],
)
def test_weights_are_loaded_for_an_evaluation_and_by_class_for_tuning(
    kind, names, loaded
):
    """Those of a resumed run come later, with its training state."""
    file = read_weights(TRAINED)
    start = Start(
        None if kind == "new" else file,
        small_state() if kind == "resumed" else None,
        tunes=kind == "tuned",
    )
    classes = [
        {"id": number, "name": name} for number, name in enumerate(names)
    ]
    model, _ = build_model(tiny_config(num_classes=4), start, classes, 0, CPU)
    state = model.state_dict()
    rows = [
        ["disc", "square", "triangle", "ring"].index(name) for name in names
    ]
    assert torch.equal(state[BOX_HEAD], file.weights[BOX_HEAD]) == loaded
    assert (
        torch.equal(state[CLASS_HEAD], file.weights[CLASS_HEAD][rows]) == loaded
    )


def test_a_backbone_that_cannot_be_compiled_is_refused():
    model = torch.nn.Module()
    model.backbone = torch.nn.Conv2d(3, 4, 1)
    with pytest.raises(
        ConfigError, match="^compile is 'backbone', but Conv2d has no part that"
    ):
        compile_backbone(model)


def test_a_file_of_another_family_is_tuned_with_a_warning_and_not_evaluated(
    caplog,
):
    content = torch.load(TRAINED, weights_only=True)
    settings = yaml.safe_load(content["meta"]["config"])
    settings["DFINETransformer"]["activation"] = "silu"
    silu = yaml.safe_dump(settings)
    file = WeightFile(TRAINED, content["model"], {"config": silu})
    cfg = tiny_config(num_classes=4)
    classes = [{"id": number, "name": "a"} for number in range(4)]
    with caplog.at_level(logging.WARNING, "dfine"):
        build_model(cfg, Start(file, tunes=True), classes, 0, CPU)
    assert "with SiLU in the decoder, but" in caplog.text
    with pytest.raises(CheckpointError, match="describes a decoder with ReLU"):
        build_model(tiny_config(num_classes=4), Start(file), classes, 0, CPU)


def test_the_projector_of_a_distillation_starts_the_same_on_all_ranks(tmp_path):
    settings = write_tiny_teacher(tmp_path)

    def start_weights():
        cfg = tiny_config(num_classes=4, distillation=settings)
        cfg.resolve_lengths(RunLength(2, 6))
        seed_step(0, 0)  # other random numbers on each rank
        model = cfg.model
        guard = NumericsGuard(6)
        step = build_step(cfg, model, guard, None, CPU, None)
        return [p.detach() for p in step.distillation.parameters()]

    first, second = on_ranks(2, start_weights)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def step_with_detector(**changes):
    """Return a step whose teacher is the trained detector, for data with its classes in another order."""
    settings = DETECTOR_TEACHER | changes.pop("distillation", {})
    cfg = tiny_config(num_classes=4, distillation=settings, **changes)
    cfg.resolve_lengths(RunLength(2, 6))
    return build_step(
        cfg,
        cfg.model.train(),
        NumericsGuard(6),
        None,
        CPU,
        None,
        class_names=["ring", "disc", "square", "cow"],
    )


def test_a_step_gets_the_losses_of_a_detector_as_teacher():
    step = step_with_detector(distillation={"min_score": 0.0})
    target = {
        "boxes": torch.rand(2, 4) / 4 + 0.3,
        "labels": torch.zeros(2, dtype=torch.int64),
    }
    window = [(torch.rand(1, 3, 64, 64), [target])]
    (lesson,) = step.distillation.consult([window[0][0]])
    assert lesson.detections.known.tolist() == [1, 1, 1, 0]
    losses = step(0, window)
    assert {"loss_distill", "loss_soft_cls"} <= losses.keys()


def test_the_decoder_part_alone_has_no_parameters():
    step = step_with_detector(distillation={"encoder_weight": None})
    names = [group.get("name") for group in step.optimizer.param_groups]
    assert "distillation" not in names
    assert step.distillation.parameters() == []


class OtherCriterion(torch.nn.Module):
    """A criterion of a user, which knows nothing about teachers."""

    def forward(self, outputs, targets):
        return {}


def test_a_criterion_that_cannot_use_detections_is_refused(monkeypatch):
    monkeypatch.setattr(
        YAMLConfig, "criterion", property(lambda cfg: OtherCriterion())
    )
    with pytest.raises(ConfigError) as error:
        step_with_detector()
    assert str(error.value) == (
        "the criterion OtherCriterion has no method taught_terms, which the decoder part of the distillation "
        "needs; use DFINECriterion, or set distillation.decoder_weight=~"
    )
    step_with_detector(distillation={"decoder_weight": None})


def test_the_optimizer_has_the_projector_of_a_distillation_in_a_group_of_its_own(
    tmp_path,
):
    settings = write_tiny_teacher(tmp_path)
    cfg = tiny_config(num_classes=4, distillation=settings)
    cfg.resolve_lengths(RunLength(2, 6))
    group = cfg.optimizer.param_groups[-1]
    own = cfg.distillation.parameters()
    assert [id(p) for p in group["params"]] == [id(p) for p in own]
    assert group["lr"] == cfg.yaml_cfg["optimizer"]["lr"]
