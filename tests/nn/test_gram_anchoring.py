import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src.core import CheckpointError, ConfigError, create
from src.core.durations import RunLength
from src.nn.backbone import HGNetv2
from src.nn.gram_anchoring import GramAnchoring, gram_distance
from src.nn.lora import LoRALinear
from src.optim.ema import ModelEMA
from tests.fixtures.lengths import resolve_specification
from tests.fixtures.vits import (
    GATED,
    PLAIN,
    WITH_BIASES,
    official_layout,
    randomize,
    small_backbone,
    timm_layout,
)


class Detector(nn.Module):
    """A backbone and something behind it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, images):
        return [self.head(x) for x in self.backbone(images)]


@pytest.fixture
def published(tmp_path):
    """Write published weights of a small model, and return their file."""

    def write(model_name: str = PLAIN):
        path = tmp_path / "dinov3.pth"
        torch.save(timm_layout(small_backbone(model_name, depth=3).vit), path)
        return str(path)

    return write


@pytest.fixture
def watched(published):
    """Return a detector that starts from published weights, and the loss that watches it."""

    def build(
        model_name: str = PLAIN,
        *,
        drift: float = 0.3,
        backbone: dict | None = None,
        **settings,
    ):
        model = Detector(
            small_backbone(
                model_name,
                depth=3,
                pretrained=True,
                checkpoint_path=published(model_name),
                **(backbone or {}),
            )
        ).train()
        model.backbone.load_pretrained()
        anchoring = GramAnchoring(
            model, **({"num_tokens": None, "weight": 1.0} | settings)
        )
        anchoring.load_teacher()
        anchoring.attach()
        drift_away(model.backbone.vit, drift)
        return model, anchoring

    return build


@torch.no_grad()
def drift_away(vit: nn.Module, by: float) -> None:
    """Change what is trained, as training would."""
    for parameter in vit.parameters():
        if parameter.requires_grad:
            parameter.add_(
                by
                * torch.randn(parameter.shape)
                * parameter.std(unbiased=False)
            )


def images(height: int = 64, width: int = 96, batch: int = 2):
    return torch.rand(batch, 3, height, width)


def cosines(tokens):
    """Return similarities `[P, P]` of tokens `[P, D]`, one by one."""
    return torch.stack(
        [
            torch.stack([F.cosine_similarity(a, b, dim=0) for b in tokens])
            for a in tokens
        ]
    )


def last_maps(backbone, vit, batch, *, norm: bool = True):
    """Return the maps `[B, D, h, w]` of each tap."""
    normalised = (batch - backbone.image_mean) / backbone.image_std
    return vit.forward_intermediates(
        normalised,
        indices=backbone.tap_blocks,
        norm=norm,
        stop_early=True,
        intermediates_only=True,
    )


# ---- the distance ----


def test_distance_is_the_mean_squared_difference_of_cosine_similarities():
    student, teacher = torch.randn(2, 5, 2, 3), torch.randn(2, 5, 2, 3)
    each = [
        (cosines(s.flatten(1).T) - cosines(t.flatten(1).T)).square().mean()
        for s, t in zip(student, teacher)
    ]
    torch.testing.assert_close(
        gram_distance(student, teacher), torch.stack(each).mean()
    )


def test_distance_of_drawn_patches_is_that_of_their_similarities():
    student, teacher, drawn = (
        torch.randn(1, 5, 2, 3),
        torch.randn(1, 5, 2, 3),
        torch.tensor([4, 0, 2]),
    )
    expected = (
        (
            cosines(student[0].flatten(1).T[drawn])
            - cosines(teacher[0].flatten(1).T[drawn])
        )
        .square()
        .mean()
    )
    torch.testing.assert_close(gram_distance(student, teacher, drawn), expected)


def test_distance_does_not_see_a_rotation_of_all_features():
    maps = torch.randn(2, 6, 3, 3)
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    assert (
        gram_distance(
            torch.einsum("ij,bjhw->bihw", rotation, maps), maps
        ).item()
        < 1e-12
    )


def test_distance_does_not_see_the_length_of_features():
    maps = torch.randn(2, 6, 3, 3)
    assert (
        gram_distance(maps * torch.rand(2, 1, 3, 3).add(0.5), maps).item()
        < 1e-12
    )


def test_distance_is_in_float32_under_autocast():
    student, teacher = torch.randn(1, 5, 2, 3), torch.randn(1, 5, 2, 3)
    expected = gram_distance(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gram_distance(student, teacher), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distance_of_features_in_half_precision_is_computed_in_float32(dtype):
    student, teacher = torch.randn(2, 1, 5, 2, 3).to(dtype)
    drawn = torch.tensor([4, 0, 2])
    for patches in (None, drawn):
        distance = gram_distance(student, teacher, patches)
        assert distance.dtype == torch.float32
        assert distance == gram_distance(
            student.float(), teacher.float(), patches
        )


# ---- what the loss is ----


@pytest.mark.parametrize("model_name", [PLAIN, WITH_BIASES, GATED])
def test_loss_is_zero_at_the_start(model_name, watched):
    model, anchoring = watched(model_name, drift=0.0)
    model(images())
    assert anchoring().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("tap_norm", ["final", "own", "none"])
def test_loss_compares_the_last_tap_of_student_and_teacher(tap_norm, watched):
    model, anchoring = watched(backbone={"tap_norm": tap_norm}, weight=3.0)
    batch = images()
    model(batch)
    student, teacher = (
        last_maps(model.backbone, vit, batch, norm=tap_norm == "final")[-1]
        for vit in (model.backbone.vit, anchoring.teacher)
    )
    loss = anchoring()
    assert loss > 1e-4
    torch.testing.assert_close(loss, 3 * gram_distance(student, teacher))


def test_loss_can_be_the_mean_over_all_taps(watched):
    model, anchoring = watched(all_taps=True)
    batch = images()
    model(batch)
    pairs = zip(
        *(
            last_maps(model.backbone, vit, batch)
            for vit in (model.backbone.vit, anchoring.teacher)
        )
    )
    torch.testing.assert_close(
        anchoring(), torch.stack([gram_distance(s, t) for s, t in pairs]).mean()
    )


def test_fewer_tokens_are_drawn_at_random_the_same_for_both(watched):
    model, anchoring = watched(num_tokens=5)
    batch = images()
    model(batch)
    torch.manual_seed(7)
    loss = anchoring()
    torch.manual_seed(7)
    drawn = torch.randperm(4 * 6)[:5]
    student, teacher = (
        last_maps(model.backbone, vit, batch)[-1]
        for vit in (model.backbone.vit, anchoring.teacher)
    )
    torch.testing.assert_close(loss, gram_distance(student, teacher, drawn))


def test_drawn_tokens_of_an_unchanged_student_agree(watched):
    model, anchoring = watched(num_tokens=5, drift=0.0)
    model(images())
    assert anchoring().item() == pytest.approx(0, abs=1e-12)


def test_the_random_state_is_unchanged_if_all_tokens_are_used(watched):
    model, anchoring = watched(num_tokens=24)
    model(images())
    before = torch.get_rng_state()
    anchoring()
    assert torch.equal(torch.get_rng_state(), before)


def test_random_parts_of_training_do_not_act_on_the_teacher(watched):
    model, anchoring = watched(
        backbone={"drop_path": 0.9, "rope_rescale_coords": 2.0}
    )
    batch = (images() - model.backbone.image_mean) / model.backbone.image_std
    assert torch.equal(
        anchoring.teacher.forward_features(batch),
        anchoring.teacher.forward_features(batch),
    )


def test_loss_is_float32_under_autocast_and_both_see_the_same_precision(
    watched,
):
    model, anchoring = watched(drift=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        model(images())
    loss = anchoring()  # autocast is off where losses are computed
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(
        0, abs=1e-12
    )


def test_loss_can_be_computed_within_autocast(watched):
    model, anchoring = watched()
    with torch.autocast("cpu", torch.bfloat16):
        model(images())
        loss = anchoring()
    loss.backward()
    assert loss.dtype == torch.float32 and loss > 1e-4


def test_student_with_gradient_checkpointing_is_compared_all_the_same(watched):
    model, anchoring = watched(backbone={"gradient_checkpointing": True})
    model(images())
    anchoring().backward()
    assert (
        model.backbone.vit.blocks[0].mlp.fc1.weight.grad.any()
        and not anchoring.teacher.grad_checkpointing
    )


# ---- gradients ----


def test_a_student_with_windows_is_compared_with_global_attention(watched):
    model, anchoring = watched(
        drift=0.0, backbone={"windows": 2, "window_blocks": [0]}
    )
    images = torch.rand(2, 3, 64, 64)
    model.train()(images)
    backbone = model.backbone
    normalized = (images - backbone.image_mean) / backbone.image_std
    expected = gram_distance(
        backbone._windowed_taps(normalized)[-1],
        backbone.taps_of(backbone.vit, normalized)[-1],
    )
    loss = anchoring()
    assert loss > 0  # although no weight has changed
    torch.testing.assert_close(loss, anchoring.weight * expected)


def test_gradients_reach_the_vit_of_the_student_alone(watched):
    model, anchoring = watched()
    model(images())
    anchoring().backward()
    reached = {
        name
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    assert reached and all(name.startswith("backbone.vit.") for name in reached)
    assert not any(
        p.requires_grad or p.grad is not None
        for p in anchoring.teacher.parameters()
    )


def test_steps_bring_the_student_back_and_leave_the_teacher(watched):
    model, anchoring = watched(drift=0.1)
    batch, before = images(), copy.deepcopy(anchoring.teacher.state_dict())
    optimizer = torch.optim.Adam(model.backbone.vit.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        model(batch)
        losses.append(anchoring())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(
        torch.equal(value, before[key])
        for key, value in anchoring.teacher.state_dict().items()
    )


def test_a_frozen_vit_has_no_loss_and_the_teacher_does_not_run(watched):
    model, anchoring = watched(backbone={"freeze_backbone_epochs": 3})
    anchoring.teacher = None
    model(images())
    assert anchoring() is None


def test_a_vit_that_thaws_has_one(watched):
    model, anchoring = watched(backbone={"freeze_backbone_epochs": 3})
    model.backbone.set_trainable_blocks(1)
    model(images())
    assert anchoring().requires_grad


def test_evaluation_has_no_loss(watched):
    model, anchoring = watched()
    with torch.no_grad():
        model.eval()(images())
    assert anchoring() is None


def test_a_pass_without_gradients_replaces_the_one_before(watched):
    model, anchoring = watched()
    model(images())
    with torch.no_grad():
        model(images())
    assert anchoring() is None


def test_a_pass_counts_once(watched):
    model, anchoring = watched()
    assert anchoring() is None
    model(images())
    assert anchoring() is not None and anchoring() is None


def test_weight_zero_has_no_loss_and_releases_the_pass(watched):
    model, anchoring = watched(weight=0)
    model(images())
    assert anchoring() is None and anchoring._recorder.seen is None


# ---- apart from the model ----


def test_the_model_keeps_its_keys_and_parameters(watched):
    model, _ = watched()
    plain = Detector(small_backbone(depth=3))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in plain.parameters()
    )


def test_a_copy_of_the_model_is_not_watched_and_carries_nothing(watched):
    model, anchoring = watched()
    model(images())  # a graph that could not be copied
    twin = copy.deepcopy(model)
    anchoring()
    twin(images())
    assert anchoring() is None
    assert not any(
        hasattr(hook, "seen")
        for module in twin.modules()
        for hook in module._forward_pre_hooks.values()
    )


def test_an_average_made_after_attaching_works(watched):
    model, anchoring = watched()
    ema = ModelEMA(model)
    ema.update(model)
    ema.module(images())
    assert anchoring() is None


def test_a_model_is_watched_only_while_attached(watched):
    model, anchoring = watched()
    model(images())
    anchoring.detach()
    assert anchoring() is None and not model.backbone.adapter._forward_pre_hooks
    model(images())
    assert anchoring() is None


def test_attaching_twice_watches_once(watched):
    model, anchoring = watched()
    anchoring.attach()
    assert len(model.backbone.adapter._forward_pre_hooks) == 1


def test_the_teacher_moves_to_a_device(watched):
    _, anchoring = watched()
    assert anchoring.to("meta") is anchoring
    assert {p.device.type for p in anchoring.teacher.parameters()} == {"meta"}


# ---- the teacher's weights ----


@pytest.mark.parametrize("model_name", [PLAIN, WITH_BIASES, GATED])
def test_the_teacher_of_a_student_with_lora_is_the_plain_vit(
    model_name, watched
):
    model, anchoring = watched(model_name, backbone={"lora_rank": 4})
    assert not any(
        isinstance(layer, LoRALinear) for layer in anchoring.teacher.modules()
    )
    plain = small_backbone(
        model_name,
        depth=3,
        pretrained=True,
        checkpoint_path=model.backbone.checkpoint_path,
    )
    plain.load_pretrained()
    assert {
        k: v.tolist() for k, v in anchoring.teacher.state_dict().items()
    } == {k: v.tolist() for k, v in plain.vit.state_dict().items()}


def test_a_student_with_lora_is_held_to_it(watched):
    model, anchoring = watched(backbone={"lora_rank": 4}, drift=0.0)
    model(images())
    assert anchoring().item() == pytest.approx(0, abs=1e-12)
    randomize(model.backbone.vit.blocks[1].attn.qkv)
    model(images())
    anchoring().backward()
    assert model.backbone.vit.blocks[1].attn.qkv.lora_down.grad.any()


def test_published_weights_are_read_though_the_backbone_starts_from_others(
    published,
):
    model = Detector(
        small_backbone(depth=3, pretrained=False, checkpoint_path=published())
    )
    anchoring = create({"type": "GramAnchoring"}, model=model)
    assert torch.equal(
        anchoring.teacher.cls_token,
        torch.load(model.backbone.checkpoint_path)["cls_token"],
    )
    assert not torch.equal(
        anchoring.teacher.cls_token, model.backbone.vit.cls_token
    )


def test_a_file_of_its_own_goes_before_that_of_the_backbone(
    published, tmp_path
):
    own, path = small_backbone(depth=3), tmp_path / "own.pth"
    torch.save(official_layout(own.vit, live_biases=False), path)
    anchoring = GramAnchoring(
        Detector(small_backbone(depth=3, checkpoint_path=published())),
        checkpoint_path=str(path),
    )
    anchoring.load_teacher()
    assert torch.equal(anchoring.teacher.cls_token, own.vit.cls_token)


def test_missing_weights_are_reported_with_advice(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        GramAnchoring(Detector(small_backbone())).load_teacher()
    assert str(caught.value).startswith(
        "DINOv3 weights not found: there is no file "
        "weights/dinov3_vits16_pretrain_lvd1689m-08c60483.pth, and timm/"
    )
    assert (
        "name another with -u gram_anchoring.checkpoint_path=FILE, "
        "or train without Gram anchoring: -u gram_anchoring=~ ("
        in str(caught.value)
    )


# ---- the weight ----

RUN = RunLength(epochs=20, steps_per_epoch=10)


def weights(schedule, *epochs):
    resolved = resolve_specification(
        {"type": "GramAnchoring", "weight": schedule}, RUN
    )
    anchoring = GramAnchoring(Detector(small_backbone()), resolved["weight"])
    result = []
    for epoch in epochs:
        anchoring.set_epoch(epoch)
        result.append(anchoring.weight)
    return result


def test_a_number_is_the_weight_of_all_epochs():
    assert weights(50, 0, 7, 19) == [50, 50, 50]


def test_weights_go_straight_from_point_to_point_and_stay_before_and_after():
    assert weights(
        [[4, 100], ["60 %", 20], ["15 epochs", 0]], 0, 4, 8, 12, 14, 15, 19
    ) == pytest.approx([100, 100, 60, 20, 20 / 3, 0, 0])


def test_two_points_in_an_epoch_are_a_jump():
    assert weights([[0, 5], [10, 5], [10, 1]], 9, 10, 11) == [5, 1, 1]


def test_lengths_may_be_fractions_and_steps():
    assert weights([[0.0, 0], [0.5, 10], ["150 steps", 0]], 0, 5, 10, 15) == [
        0,
        5,
        10,
        0,
    ]


def test_points_in_epochs_hold_without_a_run():
    anchoring = GramAnchoring(Detector(small_backbone()), [[0, 8], [4, 0]])
    anchoring.set_epoch(1)
    assert anchoring.weight == 6


@pytest.mark.parametrize(
    "weight", [-1, [], [[0, -1]], [[0]], [[0, "a lot"]], [0, 100]]
)
def test_invalid_weights_are_refused(weight):
    with pytest.raises(ConfigError) as caught:
        GramAnchoring(Detector(small_backbone()), weight)
    assert str(caught.value) == (
        f"GramAnchoring.weight is {weight!r}, expected a number of at least 0, "
        "or pairs of a length and such a number: [[0, 100], ['50 %', 0]]"
    )


def test_invalid_lengths_are_refused():
    with pytest.raises(
        ConfigError,
        match="GramAnchoring.weight is 'half', expected an integer number of epochs",
    ):
        weights([["half", 1]])


@pytest.mark.parametrize(
    ("schedule", "epochs"),
    [([[5, 1], [3, 0]], [5, 3]), ([["50 %", 1], [3, 0]], [10, 3])],
)
def test_points_that_do_not_ascend_are_refused(schedule, epochs):
    with pytest.raises(ConfigError) as caught:
        weights(schedule)
    assert (
        str(caught.value)
        == f"GramAnchoring.weight goes through epochs {epochs}, expected them to ascend"
    )


# ---- refusals ----


def test_a_model_without_a_dinov3_backbone_is_refused():
    with pytest.raises(ConfigError) as caught:
        GramAnchoring(HGNetv2("B0", pretrained=False))
    assert (
        str(caught.value)
        == "GramAnchoring needs a model with one DINOv3Backbone, this HGNetv2 has 0"
    )


def test_a_number_of_tokens_below_one_is_refused():
    with pytest.raises(
        ConfigError, match="GramAnchoring.num_tokens is 0, expected at least 1"
    ):
        GramAnchoring(Detector(small_backbone()), num_tokens=0)


def test_a_backbone_that_is_never_trained_is_reported_and_no_teacher_is_read():
    with pytest.raises(
        ConfigError,
        match="^gram_anchoring keeps a trained ViT close to .* but no block of this ViT is ever trained",
    ):
        GramAnchoring(Detector(small_backbone(freeze_backbone=True)))
