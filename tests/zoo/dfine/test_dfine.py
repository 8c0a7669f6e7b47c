import copy

import pytest
import torch
from torch import nn

from src.core import ConfigError, YAMLConfig
from src.zoo.dfine import DFINE, DFINETransformer, HybridEncoder
from tests.fixtures.detector import small_decoder
from tests.fixtures.golden import ROOT, coco_config
from tests.fixtures.tiny import tiny_config
from tests.fixtures.vits import randomize


class Backbone(nn.Module):
    """Maps of strides 8, 16 and 32, with or without attributes for them."""

    def __init__(self, channels=(4, 6, 8), strides=(8, 16, 32)):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(3, c, s, s) for c, s in zip((4, 6, 8), (8, 16, 32))
        )
        if channels:
            self.out_channels = list(channels)
        if strides:
            self.out_strides = list(strides)

    def forward(self, images):
        return [conv(images) for conv in self.convs]


def encoder(**settings):
    return HybridEncoder(
        **(
            {
                "in_channels": [4, 6, 8],
                "hidden_dim": 16,
                "nhead": 2,
                "dim_feedforward": 12,
                "depth_mult": 0.34,
            }
            | settings
        )
    )


def detector(**settings):
    return DFINE(Backbone(), encoder(), small_decoder(**settings))


# ---- joints ----


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            (
                lambda: Backbone(channels=(256, 256, 256)),
                encoder,
                small_decoder,
            ),
            (
                "HybridEncoder.in_channels is [4, 6, 8] but Backbone gives "
                "[256, 256, 256]; set in_channels to match"
            ),
        ),
        (
            (lambda: Backbone(channels=(4, 6)), encoder, small_decoder),
            "HybridEncoder.in_channels is [4, 6, 8] but Backbone gives [4, 6]; set in_channels to match",
        ),
        (
            (lambda: Backbone(strides=(4, 8, 16)), encoder, small_decoder),
            (
                "HybridEncoder.feat_strides is [8, 16, 32] but Backbone gives [4, 8, 16]; "
                "set feat_strides to match"
            ),
        ),
        (
            (
                Backbone,
                encoder,
                lambda: small_decoder(feat_channels=[16, 16, 32]),
            ),
            (
                "DFINETransformer.feat_channels is [16, 16, 32] but HybridEncoder gives "
                "[16, 16, 16]; set feat_channels to match"
            ),
        ),
        (
            (Backbone, encoder, lambda: small_decoder(feat_strides=[4, 8, 16])),
            (
                "DFINETransformer.feat_strides is [4, 8, 16] but HybridEncoder gives "
                "[8, 16, 32]; set feat_strides to match"
            ),
        ),
        (
            (
                Backbone,
                encoder,
                lambda: small_decoder(
                    feat_channels=[16, 16],
                    feat_strides=[8, 16],
                    num_levels=2,
                    num_points=2,
                ),
            ),
            (
                "DFINETransformer.feat_channels is [16, 16] but HybridEncoder gives "
                "[16, 16, 16]; set feat_channels to match"
            ),
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_both_lists(parts, message):
    with pytest.raises(ConfigError) as caught:
        DFINE(*(part() for part in parts))
    assert str(caught.value) == message


def test_a_backbone_that_does_not_say_what_it_gives_is_taken_at_its_word():
    model = DFINE(
        Backbone(channels=None, strides=None), encoder(), small_decoder()
    ).eval()
    assert model(torch.rand(1, 3, 64, 64))["pred_boxes"].shape == (1, 10, 4)


def test_levels_that_the_decoder_adds_itself_do_not_disagree():
    assert detector(num_levels=4, num_points=2).eval()(
        torch.rand(1, 3, 64, 64)
    )["pred_boxes"].shape == (
        1,
        10,
        4,
    )


def test_parts_stand_in_the_state_in_the_official_order():
    assert list(
        dict.fromkeys(key.split(".")[0] for key in detector().state_dict())
    ) == [
        "backbone",
        "decoder",
        "encoder",
    ]


# ---- sizes of images ----


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)])
def test_every_multiple_of_32_works(size):
    model = detector().eval()
    assert model(torch.rand(2, 3, *size))["pred_logits"].shape[0] == 2


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            (100, 64),
            "image height 100 is not a multiple of 32; the nearest valid sizes are 96 or 128",
        ),
        (
            (64, 650),
            "image width 650 is not a multiple of 32; the nearest valid sizes are 640 or 672",
        ),
        (
            (20, 64),
            "image height 20 is not a multiple of 32; the nearest valid sizes are 32",
        ),
        (
            (64, 33),
            "image width 33 is not a multiple of 32; the nearest valid sizes are 32 or 64",
        ),
    ],
)
def test_other_sizes_are_refused_with_the_nearest_valid_ones(size, message):
    with pytest.raises(ConfigError) as caught:
        detector().eval()(torch.rand(1, 3, *size))
    assert str(caught.value) == message


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 160)])
def test_a_detector_built_for_one_size_evaluates_and_trains_at_others(size):
    model = tiny_config().model  # for 64 x 64
    targets = [
        {
            "labels": torch.tensor([1]),
            "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.2]]),
        },
        {
            "labels": torch.zeros(0, dtype=torch.int64),
            "boxes": torch.zeros(0, 4),
        },
    ]
    images = torch.rand(2, 3, *size)
    with torch.inference_mode():
        detections = model.eval()(images)
    losses = tiny_config().criterion(
        model.train()(images, targets=targets), targets
    )
    sum(losses.values()).backward()
    assert detections["pred_boxes"].isfinite().all() and all(
        loss.isfinite() for loss in losses.values()
    )


# ---- deployment ----


@pytest.fixture
def trained():
    """A detector whose norms are not the identity and whose heads are not zero."""
    model = tiny_config().model.eval()
    kept = {
        key: value.clone()
        for key, value in model.state_dict().items()
        if key.endswith(
            ("anchors", "valid_mask", "up", "reg_scale", "points_scale")
        )
    }
    randomize(model).load_state_dict(kept, strict=False)
    return model


@torch.inference_mode()
def test_deployed_form_computes_the_same(trained):
    images = torch.rand(2, 3, 64, 64)
    before, after = trained(images), trained.deploy()(images)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_deploying_twice_computes_the_same(trained):
    images = torch.rand(1, 3, 64, 64)
    once = trained.deploy()
    torch.testing.assert_close(once.deploy()(images), once(images))


def test_deploying_leaves_the_original_alone(trained):
    before = {
        key: value.clone()
        for key, value in trained.train().state_dict().items()
    }
    trained.deploy()
    after = trained.state_dict()
    assert (
        trained.training
        and list(after) == list(before)
        and all(torch.equal(after[key], value) for key, value in before.items())
    )


def test_deployed_form_shares_no_memory_with_the_original(trained):
    own = {p.data_ptr() for p in trained.parameters()}
    assert not own & {p.data_ptr() for p in trained.deploy().parameters()}


def test_deployed_form_is_in_eval_mode(trained):
    assert {m.training for m in trained.train().deploy().modules()} == {False}


@pytest.mark.parametrize(
    ("size", "keys", "parameters"),
    [
        ("n", 506, 3_753_799),
        ("s", 550, 10_237_491),
        ("m", 723, 19_248_189),
        ("l", 751, 30_724_195),
        ("x", 1019, 61_601_635),
    ],
)
def test_deployed_form_of_a_published_size_has_its_keys_and_parameters(
    size, keys, parameters
):
    deployed = coco_config(size).model.deploy()
    assert (
        len(deployed.state_dict()),
        sum(p.numel() for p in deployed.parameters()),
    ) == (keys, parameters)


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_idx": 0},
        {"eval_idx": 0, "layer_scale": 2},
        {"query_select_method": "agnostic"},
        {"cross_attn_method": "discrete"},
        {"learn_query_content": True},
    ],
    ids=str,
)
@torch.inference_mode()
def test_deployed_form_of_other_settings_computes_the_same(settings):
    model, images = detector(**settings).eval(), torch.rand(2, 3, 64, 96)
    for key, value in model(images).items():
        torch.testing.assert_close(
            model.deploy()(images)[key], value, rtol=1e-3, atol=1e-3
        )


def test_a_copy_of_a_detector_keeps_shared_parameters_shared():
    decoder = copy.deepcopy(detector()).decoder
    assert (
        isinstance(decoder, DFINETransformer)
        and decoder.up is decoder.decoder.up
    )


@pytest.mark.parametrize("size", ["n", "s", "m", "l", "x"])
def test_published_sizes_keep_reg_scale_as_a_whole_number(size):
    config = YAMLConfig(
        ROOT / f"configs/dfine/dfine_hgnetv2_{size}_coco.yml"
    ).yaml_cfg
    settings = config["DFINETransformer"]
    assert isinstance(settings["reg_scale"], int) and settings["reg_scale"] == (
        8 if size == "x" else 4
    )


def test_one_image_gives_the_gradients_that_two_copies_of_it_give():
    torch.manual_seed(0)
    model = randomize(
        tiny_config(num_classes=4, DFINETransformer={"num_denoising": 0}).model
    ).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    image, found = torch.rand(1, 3, 64, 64), []
    for copies in (1, 2):
        outputs = model(
            image.repeat(copies, 1, 1, 1),
            targets=[
                {
                    "labels": torch.tensor([1]),
                    "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]]),
                }
            ]
            * copies,
        )
        loss = sum(
            outputs[name].square().sum() / copies
            for name in ("pred_logits", "pred_boxes")
        )
        loss += sum(
            outputs["enc_aux_outputs"][0][name].square().sum() / copies
            for name in ("pred_logits", "pred_boxes")
        )
        model.zero_grad()
        loss.backward()
        found.append(
            {
                name: p.grad
                for name, p in model.named_parameters()
                if p.grad is not None
            }
        )
    for name, one in found[0].items():
        torch.testing.assert_close(
            one,
            found[1][name],
            rtol=1e-3,
            atol=1e-3 * max(1.0, found[1][name].abs().max().item()),
            msg=name,
        )
