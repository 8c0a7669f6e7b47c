import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src.core import CheckpointError, ConfigError, create
from src.nn.distillation import FeatureDistillation, cosine_distance
from src.optim.ema import ModelEMA
from src.zoo.dfine.hybrid_encoder import HybridEncoder
from tests.fixtures.vits import randomize, small_backbone, timm_layout

TEACHER = {
    "teacher": "vit_small_patch16_dinov3",
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 2,
}


class Detector(nn.Module):
    """A backbone of three convolutions, an encoder of width 16, and a head behind it."""

    def __init__(self, **encoder) -> None:
        super().__init__()
        self.stem = nn.ModuleList(nn.Conv2d(3, 16, s, s) for s in (8, 16, 32))
        self.encoder = HybridEncoder(
            [16, 16, 16],
            hidden_dim=16,
            nhead=2,
            dim_feedforward=16,
            depth_mult=0.34,
            expansion=0.5,
            **encoder,
        )
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, images):
        maps = self.encoder([conv(images) for conv in self.stem])
        return [self.head(x) for x in maps]


@pytest.fixture
def published(tmp_path):
    """Write published weights of a small teacher, and return their file."""
    path = tmp_path / "dinov3.pth"
    torch.save(timm_layout(small_backbone(depth=3).vit), path)
    return str(path)


@pytest.fixture
def watched(published):
    """Return a detector, and the loss that compares it with a teacher of random weights."""

    def build(**settings):
        model = randomize(Detector()).train()
        distillation = FeatureDistillation(
            model, checkpoint_path=published, **(TEACHER | settings)
        )
        distillation.load_teacher()
        distillation.attach()
        return model, distillation

    return build


def images(height: int = 64, width: int = 96, batch: int = 2):
    return torch.rand(batch, 3, height, width)


def attended(model, batch):
    """Return the encoder's coarsest map `[B, D, h, w]` after its attention."""
    encoder = model.encoder
    coarsest = encoder.input_proj[-1](model.stem[-1](batch))
    return encoder._attend(encoder.encoder[0], coarsest)


def taught(distillation, batch):
    """Return the teacher's tokens as a map `[B, D, h, w]`, from the tokens of timm's model."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    small = F.avg_pool2d((batch - mean) / std, 2)
    vit = distillation.teacher.backbone.vit
    tokens = vit.forward_features(small)[:, vit.num_prefix_tokens :]
    grid = (batch.shape[2] // 32, batch.shape[3] // 32)
    return tokens.transpose(1, 2).unflatten(2, grid)


# ---- the distance ----


def test_distance_is_the_mean_over_positions_of_one_minus_the_cosine():
    student, teacher = torch.randn(2, 2, 5, 2, 3)
    each = []
    for s, t in zip(student, teacher):
        for y in range(2):
            for x in range(3):
                each.append(1 - F.cosine_similarity(s[:, y, x], t[:, y, x], 0))
    torch.testing.assert_close(
        cosine_distance(student, teacher), torch.stack(each).mean()
    )


def test_distance_does_not_depend_on_the_length_of_features():
    maps = torch.randn(2, 6, 3, 3)
    scaled = maps * torch.rand(2, 1, 3, 3).add(0.5)
    assert cosine_distance(scaled, maps).item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_of_twice_the_size_is_averaged_over_squares():
    student, teacher = torch.randn(1, 5, 2, 3), torch.randn(1, 5, 4, 6)
    torch.testing.assert_close(
        cosine_distance(student, teacher),
        cosine_distance(student, F.avg_pool2d(teacher, 2)),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distance_of_maps_in_half_precision_is_computed_in_float32(dtype):
    student, teacher = torch.randn(2, 1, 5, 2, 3).to(dtype)
    distance = cosine_distance(student, teacher)
    assert distance.dtype == torch.float32
    assert distance == cosine_distance(student.float(), teacher.float())


# ---- what the loss is ----


def test_loss_compares_the_projected_attention_map_with_the_tokens_of_the_teacher(
    watched,
):
    model, distillation = watched(weight=3.0)
    batch = images()
    model(batch)
    loss = distillation(batch)
    projector = distillation.projector
    projected = torch.einsum(
        "bdhw,cd->bchw", attended(model, batch), projector.weight
    ) + projector.bias.view(-1, 1, 1)
    expected = 3 * cosine_distance(projected, taught(distillation, batch))
    torch.testing.assert_close(loss, expected)


def test_the_teacher_has_a_token_for_each_position_of_the_student(watched):
    _, distillation = watched()
    assert distillation.teacher(images(64, 96)).shape == (2, 32, 2, 3)


def test_the_teacher_runs_without_gradients_and_randomness(watched):
    model, distillation = watched()
    batch = images()
    first = distillation.teacher(batch)
    assert not first.requires_grad
    assert torch.equal(first, distillation.teacher(batch))
    assert not distillation.teacher.backbone.vit.training


def test_loss_is_float32_under_autocast(watched):
    model, distillation = watched()
    batch = images()
    with torch.autocast("cpu", torch.bfloat16):
        model(batch)
    loss = distillation(batch)  # autocast is off where losses are computed
    loss.backward()
    assert loss.dtype == torch.float32 and 0 < loss < 2 * distillation.weight


def test_the_teacher_computes_in_the_precision_of_the_student(
    watched, monkeypatch
):
    model, distillation = watched()
    seen = []
    inner = distillation.teacher.backbone.vit.blocks[0].attn.qkv
    inner.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    batch = images()
    with torch.autocast("cpu", torch.bfloat16):
        model(batch)
    distillation(batch)
    assert seen == [torch.bfloat16]


# ---- gradients ----


def test_gradients_reach_projector_attention_and_what_is_before_it(watched):
    model, distillation = watched()
    batch = images()
    model(batch)
    distillation(batch).backward()
    reached = {
        name
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    assert all(p.grad.any() for p in distillation.parameters())
    assert "stem.2.weight" in reached
    assert "encoder.encoder.0.layers.0.linear2.weight" in reached
    assert not any("lateral" in name or "head" in name for name in reached)
    assert not any(
        p.requires_grad or p.grad is not None
        for p in distillation.teacher.backbone.parameters()
    )


def test_steps_bring_the_student_to_the_teacher_and_leave_the_teacher(watched):
    model, distillation = watched()
    batch = images()
    before = copy.deepcopy(distillation.teacher.backbone.state_dict())
    learned = [*model.parameters(), *distillation.parameters()]
    optimizer = torch.optim.Adam(learned, lr=1e-2)
    losses = []
    for _ in range(8):
        model(batch)
        losses.append(distillation(batch))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    after = distillation.teacher.backbone.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items())


def test_only_the_attention_of_the_coarsest_level_is_watched(watched):
    model, distillation = watched(share=11)
    attention = model.encoder.encoder[0]
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    attention.layers[0].linear1.bias.grad[0] = -1.0
    model.head.bias.grad[0] = 3.0
    distillation.observe(parameters)
    assert distillation.control.mean_share() == pytest.approx(25)


# ---- apart from the model ----


def test_evaluation_has_no_loss(watched):
    model, distillation = watched()
    with torch.no_grad():
        model.eval()(images())
    assert distillation(images()) is None


def test_a_pass_without_gradients_replaces_the_one_before(watched):
    model, distillation = watched()
    model(images())
    with torch.no_grad():
        model(images())
    assert distillation(images()) is None


def test_a_pass_counts_once(watched):
    model, distillation = watched()
    model(images())
    assert distillation(images()) is not None
    assert distillation(images()) is None


def test_a_copy_of_the_model_is_not_watched_and_carries_nothing(watched):
    model, distillation = watched()
    model(images())  # a graph that could not be copied
    twin = copy.deepcopy(model)
    distillation(images())
    twin(images())
    assert distillation(images()) is None


def test_an_average_has_the_parameters_of_the_detector_alone(watched):
    model, distillation = watched()
    ema = ModelEMA(model)
    ema.update(model)
    assert list(ema.module.state_dict()) == list(Detector().state_dict())
    ema.module(images())
    assert distillation(images()) is None


def test_a_model_is_watched_only_while_attached(watched):
    model, distillation = watched()
    model(images())
    distillation.attach()  # twice watches once
    assert len(model.encoder.lateral_convs[0]._forward_pre_hooks) == 1
    distillation.detach()
    model(images())
    assert distillation(images()) is None


def test_teacher_and_projector_move_to_a_device(watched):
    _, distillation = watched()
    before = distillation.parameters()
    assert distillation.to("meta") is distillation
    teacher = distillation.teacher.backbone.parameters()
    after = [*teacher, *distillation.parameters()]
    assert {p.device.type for p in after} == {"meta"}
    assert len(before) == 2


# ---- epochs and state ----


def test_an_epoch_reports_its_weight_and_share_and_logs_the_next_weight(
    watched, caplog
):
    model, distillation = watched(weight=5.0, share=11.0, tolerance=1.0)
    distillation.begin_epoch(final_stage=False)
    batch = images()
    for x in model(batch):
        x.sum().backward(retain_graph=True)
    parameters = [p for p in model.parameters() if p.grad is not None]
    distillation.observe(parameters)
    with caplog.at_level(logging.INFO, "dfine"):
        record = distillation.end_epoch()
    assert record["distillation_weight"] == 5
    assert 0 < record["distillation_share"] < 10
    assert f"weight 5 -> {distillation.weight:.4g}" in caplog.text
    assert distillation.weight > 5


def test_a_restored_distillation_is_the_same(watched):
    _, first = watched(share=11)
    first.control.weight = 7.5
    _, second = watched(share=11)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.weight == 7.5
    for a, b in zip(first.parameters(), second.parameters()):
        assert torch.equal(a, b)


def test_the_projector_of_another_teacher_is_refused(watched):
    _, distillation = watched()
    state = copy.deepcopy(distillation.state_dict())
    state["projector"]["weight"] = torch.zeros(64, 16)
    with pytest.raises(CheckpointError, match=r"\[64, 16\].*the teacher that"):
        distillation.load_state_dict(state)


# ---- settings ----


def test_it_is_built_from_a_configuration(published):
    built = create(
        {
            "type": "FeatureDistillation",
            **TEACHER,
            "checkpoint_path": published,
        },
        model=Detector(),
    )
    expected = torch.load(published)["cls_token"]
    assert torch.equal(built.teacher.backbone.vit.cls_token, expected)


def test_missing_weights_are_reported_with_advice(monkeypatch, tmp_path):
    distillation = FeatureDistillation(
        Detector(), checkpoint_path=str(tmp_path / "no.pth"), **TEACHER
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as error:
        distillation.load_teacher()
    assert "-u distillation.checkpoint_path=FILE" in str(error.value)
    assert "-u distillation=~" in str(error.value)


def test_a_teacher_that_is_not_a_dinov3_vit_is_refused():
    with pytest.raises(ConfigError, match=r"distillation\.teacher.*'resnet50'"):
        FeatureDistillation(Detector(), teacher="resnet50")


@pytest.mark.parametrize(
    "model",
    [nn.Conv2d(3, 1, 1), Detector(use_encoder_idx=[1])],
    ids=["no encoder", "attention elsewhere"],
)
def test_a_model_without_attention_on_its_coarsest_level_is_refused(model):
    with pytest.raises(ConfigError, match="attention on its coarsest level"):
        FeatureDistillation(model, **TEACHER)
