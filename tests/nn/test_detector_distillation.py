import copy
import functools
import logging

import pytest
import torch
from torch import nn

from src.core import CheckpointError, ConfigError
from src.core.contracts import Distills, Lesson, TaughtDetections, Teaches
from src.detection.fitting import load_strictly
from src.detection.model_config import model_config
from src.detection.weight_file import read_weights
from src.nn.detector_distillation import DetectorDistillation
from src.nn.distillation import cosine_distance
from src.optim.ema import ModelEMA
from tests.fixtures.processes import on_ranks
from tests.fixtures.published import write_published
from tests.fixtures.tiny import tiny_config
from tests.fixtures.trained_tiny import TRAINED
from tests.fixtures.vits import randomize

NAMES = ["disc", "square", "triangle", "ring"]
"""Classes of the trained detector."""
CPU = torch.device("cpu")


@functools.cache
def _student(num_classes):
    """Build a small detector with random weights; its width differs from that of the teacher."""
    wider = {
        "DINOv3Backbone": {"out_channels": 48},
        "HybridEncoder": {"in_channels": [48] * 3, "hidden_dim": 48},
        "DFINETransformer": {"feat_channels": [48] * 3},
        "num_classes": num_classes,
    }
    torch.manual_seed(0)
    return randomize(tiny_config(**wider).model).train()


def student(num_classes=4):
    """Return a new copy of the small detector."""
    return copy.deepcopy(_student(num_classes))


@functools.cache
def trained_detector():
    """Return the detector that the file of the trained detector holds."""
    file = read_weights(TRAINED)
    model = model_config(file).model
    load_strictly(model, file)
    return model


def distillation(model=None, *, names=NAMES, classes=4, **settings):
    """Return a distillation from the trained detector that is ready for the first step."""
    settings = {"teacher": str(TRAINED)} | settings
    built = DetectorDistillation(model or student(), **settings)
    built.use_teacher(trained_detector(), NAMES)
    built.to(CPU).attach()
    built.match_classes(names, classes)
    return built


def images(batch: int = 2, side: int = 64):
    return torch.rand(batch, 3, side, side)


class Head(nn.Module):
    """The head of a teacher with given predictions, and an encoder that has no attention."""

    def __init__(self, logits, boxes) -> None:
        super().__init__()
        self.logits, self.boxes = logits, boxes
        self.backbone = self.encoder = nn.Identity()
        self.decoder = nn.Module()
        self.decoder.num_classes = logits.shape[-1]

    def deploy(self):
        return self

    def forward(self, images):
        return {"pred_logits": self.logits, "pred_boxes": self.boxes}


def with_head(probabilities, *, names=None, student_names=None, **settings):
    """Return a distillation of the decoder part from a teacher with these class probabilities, and boxes."""
    boxes = torch.rand(*probabilities.shape[:2], 4)
    built = DetectorDistillation(
        student(), teacher="head.pth", encoder_weight=None, **settings
    )
    built.use_teacher(Head(probabilities.logit(), boxes), names)
    count = probabilities.shape[-1]
    built.match_classes(student_names, len(student_names or range(count)))
    return built, boxes


def taught(built, batch=None) -> TaughtDetections:
    (lesson,) = built.consult([images() if batch is None else batch])
    assert lesson.detections is not None
    return lesson.detections


# ---- the teacher ----


def test_it_is_a_distillation_with_a_teacher_that_detects():
    built = distillation()
    assert isinstance(built, Distills) and isinstance(built, Teaches)


def test_the_teacher_is_the_detector_of_the_file_in_its_form_for_inference():
    batch = images()
    settings = {"min_score": 0.0, "max_detections": 7}
    built = DetectorDistillation(student(), teacher=str(TRAINED), **settings)
    built.load_teacher()
    whole = tiny_config(num_classes=4).model
    whole.load_state_dict(torch.load(TRAINED, weights_only=True)["model"])
    with torch.no_grad():
        outputs = whole.eval()(batch)
    scores = outputs["pred_logits"].sigmoid().amax(-1).topk(7).values
    torch.testing.assert_close(taught(built, batch).scores, scores)


def test_the_teacher_is_frozen_and_not_a_part_of_the_student_or_its_copies():
    model = student()
    before = list(model.state_dict())
    built = distillation(model)
    assert built.teacher is not None
    assert not any(p.requires_grad for p in built.teacher.model.parameters())
    assert not built.teacher.model.training
    assert list(model.state_dict()) == before
    (lesson,) = built.consult([images()])
    assert lesson.map is not None and not lesson.map.requires_grad
    average = ModelEMA(model, decay=0.9, warmups=1).module
    average(images())
    assert built.encoder is not None and built.encoder.take_seen() is None


def test_building_the_teacher_leaves_the_random_state_alone():
    model = student()
    built = DetectorDistillation(model, teacher=str(TRAINED))
    torch.manual_seed(3)
    built.load_teacher()
    first = built.parameters()[0].detach().clone()
    torch.manual_seed(3)
    assert torch.equal(first, nn.Linear(48, 32).weight)


def test_a_run_folder_is_a_teacher(tmp_path):
    (tmp_path / "best.pth").write_bytes(TRAINED.read_bytes())
    built = DetectorDistillation(student(), teacher=str(tmp_path))
    built.load_teacher()
    assert built.teacher is not None and built.teacher.width == 32
    built.match_classes(["ring"], 1)
    assert taught(built).probabilities.shape[-1] == 1


@pytest.mark.parametrize(
    ("name", "width"), [("deimv2_n", 128), ("deimv2_atto", None)]
)
def test_a_published_file_is_a_teacher(tmp_path, name, width):
    file = write_published(tmp_path, name)
    built = DetectorDistillation(student(), teacher=str(file), min_score=0.0)
    built.load_teacher()
    built.match_classes(["dog", "person", "disc", "cat"], 4)
    found = taught(built, images(side=96))
    assert built.teacher is not None and built.teacher.width == width
    assert (built.encoder is None) == (width is None)
    assert found.known.tolist() == [1, 1, 0, 1]
    tokens = 3 * 3 + 6 * 6  # of two levels; a decoder has no more queries
    assert found.counts.tolist() == [tokens, tokens]


# ---- the encoder part ----


def test_the_encoder_part_compares_projected_maps_behind_the_attention():
    model = student()
    built = distillation(model, encoder_weight=3.0, decoder_weight=None)
    batch = images(side=96)
    seen = {}
    for name, detector in (("s", model), ("t", built.teacher.model)):
        detector.encoder.lateral_convs[0].register_forward_pre_hook(
            lambda layer, arguments, name=name: seen.update(
                {name: arguments[0]}
            )
        )
    (lesson,) = built.consult([batch])
    model(batch)
    losses = built.teach(lesson, {}, nn.Identity(), 0.25)
    projected = torch.einsum(
        "bdhw,cd->bchw", seen["s"], built.encoder.projector.weight
    ) + built.encoder.projector.bias.view(-1, 1, 1)
    expected = 3 * cosine_distance(projected, seen["t"])
    assert list(losses) == ["loss_distill"]
    torch.testing.assert_close(losses["loss_distill"], 0.25 * expected)
    model(batch)
    torch.testing.assert_close(built(batch), expected)


def test_gradients_reach_the_student_and_the_projector_but_not_the_teacher():
    model = student()
    built = distillation(model, decoder_weight=None)
    batch = images()
    (lesson,) = built.consult([batch])
    model(batch)
    losses = built.teach(lesson, {}, nn.Identity(), 1.0)
    losses["loss_distill"].backward()
    assert all(p.grad.any() for p in built.parameters())
    attention = model.encoder.encoder[0].parameters()
    assert all(p.grad is not None for p in attention)
    assert all(p.grad is None for p in built.teacher.model.parameters())


def test_the_weight_of_the_encoder_part_follows_its_share_of_the_gradient():
    model = student()
    built = distillation(model, encoder_weight=4.0, encoder_share=50.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.full_like(parameter, 1e-3)
    built.observe(trained)
    record = built.end_epoch()
    assert record["distillation_weight"] == 4.0
    assert 0 < record["distillation_share"] < 50
    assert built.weight > 4.0


def test_the_default_weight_is_that_of_the_final_stage():
    built = distillation(encoder_default_weight=20.0)
    built.begin_epoch(final_stage=True, progress=1.0)
    assert built.weight == 20.0


def test_a_teacher_without_attention_leaves_the_decoder_part(caplog):
    built = DetectorDistillation(student(), teacher="head.pth")
    head = Head(torch.zeros(1, 2, 4), torch.rand(1, 2, 4))
    with caplog.at_level(logging.WARNING, "dfine"):
        built.use_teacher(head, NAMES)
    assert caplog.messages == [
        "distillation: the teacher's Identity has no attention on its coarsest level, so the encoder part is "
        "disabled"
    ]
    assert built.parameters() == [] and built.weight == 0
    assert built.state_dict() == {"projector": {}, "weight": None}


def test_a_student_without_attention_leaves_the_decoder_part(caplog):
    model = student()
    model.encoder = nn.Identity()
    with caplog.at_level(logging.WARNING, "dfine"):
        built = DetectorDistillation(model, teacher=str(TRAINED))
    assert "the student's Identity has no attention" in caplog.text
    assert built.encoder is None


def test_a_distillation_without_parts_is_refused():
    with pytest.raises(ConfigError, match="neither an encoder part nor"):
        DetectorDistillation(
            student(), teacher="x", encoder_weight=None, decoder_weight=None
        )
    built = DetectorDistillation(student(), teacher="x", decoder_weight=0.0)
    head = Head(torch.zeros(1, 2, 4), torch.rand(1, 2, 4))
    with pytest.raises(ConfigError, match="neither an encoder part nor"):
        built.use_teacher(head, NAMES)


# ---- the decoder part ----


def test_confident_queries_are_taken_best_first():
    probabilities = torch.tensor(
        [[[0.1, 0.5], [0.2, 0.25], [0.9, 0.8], [0.4, 0.1]]]
    )
    built, boxes = with_head(probabilities)
    found = taught(built, images(1))
    assert found.counts.tolist() == [3]
    torch.testing.assert_close(
        found.scores, torch.tensor([[0.9, 0.5, 0.4, 0.0]])
    )
    torch.testing.assert_close(found.boxes[0, :3], boxes[0, [2, 0, 3]])
    torch.testing.assert_close(
        found.probabilities[0, :3], probabilities[0, [2, 0, 3]]
    )


def test_at_most_max_detections_of_an_image_are_taken():
    built, _ = with_head(torch.full((2, 9, 3), 0.6), max_detections=4)
    found = taught(built)
    assert found.scores.shape == (2, 4) and found.counts.tolist() == [4, 4]


def test_the_normalizer_is_the_sum_of_the_scores_of_all_batches_of_a_step():
    built, _ = with_head(torch.full((2, 5, 3), 0.6), max_detections=4)
    first, second = built.consult([images(), images()])
    assert first.detections.normalizer == pytest.approx(2 * 2 * 4 * 0.6)
    assert second.detections.normalizer is first.detections.normalizer


def test_the_normalizer_is_at_least_one():
    built, _ = with_head(torch.full((1, 1, 3), 0.4))
    assert taught(built, images(1)).normalizer == 1


def test_the_normalizer_is_a_mean_over_ranks():
    def normalizer():
        from src.runtime.distributed import rank

        built, _ = with_head(torch.full((2, 5 + 4 * rank(), 3), 0.5))
        return float(taught(built).normalizer)

    assert on_ranks(2, normalizer) == pytest.approx([7.0, 7.0])


class Criterion(nn.Module):
    """A criterion that returns a constant for the detections of a teacher."""

    def taught_terms(self, outputs, taught):
        return {"loss_soft_cls": torch.tensor(2.0)}


def test_the_terms_of_the_criterion_get_the_weight_of_the_decoder_part():
    built, _ = with_head(torch.full((2, 5, 3), 0.6), decoder_weight=0.5)
    (lesson,) = built.consult([images()])
    built.begin_epoch(final_stage=False, progress=0.25)
    losses = built.teach(lesson, {}, Criterion(), 0.1)
    assert losses == {"loss_soft_cls": torch.tensor(2 * 0.5 * 0.75)}
    assert built.end_epoch() == {"distillation_decoder_weight": 0.375}


@pytest.mark.parametrize(
    ("progress", "final", "expected"),
    [(0.0, False, 0.8), (0.5, False, 0.4), (1.0, False, 0.0), (0.5, True, 0.0)],
)
def test_the_weight_falls_linearly_to_zero_at_the_final_stage(
    progress, final, expected
):
    built = distillation(decoder_weight=0.8)
    built.begin_epoch(final_stage=final, progress=progress)
    assert built.decoder_weight == pytest.approx(expected)


def test_the_decoder_of_the_teacher_does_not_run_in_the_final_stage():
    built = distillation()
    built.begin_epoch(final_stage=True, progress=1.0)
    built.teacher.model.decoder.forward = None  # calling it would raise
    (lesson,) = built.consult([images()])
    assert lesson.detections is None and lesson.map.shape == (2, 32, 2, 2)


def test_the_teacher_does_not_run_if_no_part_needs_it():
    built, _ = with_head(torch.full((2, 5, 3), 0.6))
    built.begin_epoch(final_stage=True, progress=1.0)
    built.teacher.model.forward = built.teacher.model.backbone.forward = None
    assert built.consult([images()]) == [Lesson(None, None)]


# ---- classes ----


def test_classes_are_matched_by_name(caplog):
    probabilities = torch.tensor([[[0.9, 0.4, 0.6]]])
    with caplog.at_level(logging.INFO, "dfine"):
        built, _ = with_head(
            probabilities,
            names=["bus", "Cat", "dog"],
            student_names=["dog", "cow", "cat"],
        )
    found = taught(built, images(1))
    torch.testing.assert_close(
        found.probabilities, torch.tensor([[[0.6, 0.0, 0.4]]])
    )
    torch.testing.assert_close(found.scores, torch.tensor([[0.6]]))
    assert found.known.tolist() == [1, 0, 1]
    assert (
        "2 of 3 classes are classes of the teacher; 1 (cow) get no class signal, and 1 of the teacher's "
        "classes are not used"
    ) in caplog.text


def test_equal_classes_need_no_mapping():
    built = distillation()
    assert taught(built).known is None


def test_rows_of_the_head_without_a_class_get_no_signal():
    built = distillation(student(num_classes=6), classes=6)
    assert taught(built).known.tolist() == [1, 1, 1, 1, 0, 0]
    assert taught(built).probabilities.shape[-1] == 6


def test_classes_that_fit_nothing_are_refused():
    with pytest.raises(ConfigError) as error:
        distillation(names=["RBC", "WBC"], classes=2)
    assert str(error.value) == (
        f"distillation.teacher: {TRAINED} has 4 classes (disc, square, triangle, ring), none of which is a "
        "class of the data, which has 2 classes (RBC, WBC); use a teacher with these classes, or set "
        "distillation.decoder_weight=~"
    )


def test_the_encoder_part_alone_needs_no_common_class():
    built = distillation(names=["RBC"], classes=1, decoder_weight=None)
    (lesson,) = built.consult([images()])
    assert lesson.detections is None


def test_a_teacher_without_names_and_as_many_classes_has_the_classes_of_the_data(
    caplog,
):
    with caplog.at_level(logging.WARNING, "dfine"):
        built, _ = with_head(
            torch.full((1, 1, 3), 0.5), student_names=["a", "b", "c"]
        )
    assert taught(built, images(1)).known is None
    assert "its 3 classes are treated as those of the data" in caplog.text


# ---- files that are not teachers ----


def refused(settings, error):
    built = DetectorDistillation(student(), **settings)
    with pytest.raises(error) as raised:
        built.load_teacher()
    message = str(raised.value)
    assert message.startswith("distillation.teacher: ") and "\n" not in message
    return message


def test_a_missing_file_is_reported(tmp_path):
    path = tmp_path / "none.pth"
    message = refused({"teacher": str(path)}, CheckpointError)
    assert str(path) in message and "does not exist" in message


def test_an_empty_folder_is_reported(tmp_path):
    message = refused({"teacher": str(tmp_path)}, CheckpointError)
    assert "contains neither best.pth nor last.pth" in message


def test_weights_that_are_not_finite_are_reported(tmp_path):
    content = torch.load(TRAINED, weights_only=True)
    key = "encoder.lateral_convs.0.conv.weight"
    content["model"][key] = torch.full_like(content["model"][key], float("nan"))
    torch.save(content, tmp_path / "nan.pth")
    settings = {"teacher": str(tmp_path / "nan.pth")}
    message = refused(settings, CheckpointError)
    assert key in message and "not finite" in message


def test_a_file_of_another_kind_of_model_is_reported(tmp_path):
    weights = {"blocks.0.attn.qkv.weight": torch.zeros(9, 3)}
    torch.save(weights, tmp_path / "vit.pth")
    settings = {"teacher": str(tmp_path / "vit.pth")}
    message = refused(settings, CheckpointError)
    assert "is not a detector's checkpoint" in message


def test_a_configuration_that_does_not_fit_the_file_is_reported(tmp_path):
    content = torch.load(TRAINED, weights_only=True)
    torch.save(content["model"], tmp_path / "bare.pth")
    settings = {"teacher": str(tmp_path / "bare.pth")}
    message = refused(settings, CheckpointError)
    assert "contains no configuration" in message
    settings["config"] = str(tmp_path / "none.yml")
    assert "none.yml" in refused(settings, ConfigError)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("encoder_weight", 0.0),
        ("encoder_share", 101.0),
        ("decoder_weight", -1.0),
        ("decoder_weight", float("nan")),
        ("min_score", 1.0),
        ("max_detections", 0),
    ],
)
def test_values_out_of_range_are_refused(setting, value):
    with pytest.raises(ConfigError, match=rf"distillation\.{setting} is"):
        DetectorDistillation(student(), teacher="x", **{setting: value})


# ---- state ----


def test_the_state_is_restored():
    one, two = distillation(), distillation()
    one.encoder.control.weight = 7.5
    two.load_state_dict(one.state_dict())
    assert two.weight == 7.5
    assert torch.equal(one.parameters()[0], two.parameters()[0])


def test_the_state_of_a_distillation_with_other_parts_is_refused():
    whole, half = distillation(), distillation(encoder_weight=None)
    half.load_state_dict(half.state_dict())
    with pytest.raises(CheckpointError, match="has a projector for"):
        half.load_state_dict(whole.state_dict())
    with pytest.raises(CheckpointError, match="the projector of"):
        whole.load_state_dict(half.state_dict())
