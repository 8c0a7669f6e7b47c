import logging
import socket

import pytest
import timm
import torch
from torch import nn

from src.core import CheckpointError, ConfigError
from src.nn.backbone import HGNetv2
from src.nn.backbone import hgnetv2 as module_under_test
from src.ops.batch_norm import FrozenBatchNorm2d
from tests.fixtures.vits import randomize


def small(**settings):
    return HGNetv2(
        "B0",
        **(
            {
                "use_lab": True,
                "freeze_at": -1,
                "freeze_norm": False,
                "pretrained": False,
            }
            | settings
        ),
    )


def frozen_parts(model):
    """Return the stem and stages none of whose parameters are trained."""
    parts = {
        "stem": model.stem,
        **{str(i): stage for i, stage in enumerate(model.stages)},
    }
    return [
        name
        for name, part in parts.items()
        if not any(p.requires_grad for p in part.parameters())
    ]


# ---- forward ----


@pytest.mark.parametrize("indices", [[0], [3], [2, 3], [1, 2, 3], [0, 1, 2, 3]])
def test_maps_of_the_requested_stages_are_in_order(indices):
    model = small(return_idx=indices)
    maps = model(torch.rand(2, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [
        (
            2,
            (64, 256, 512, 1024)[i],
            64 // (4, 8, 16, 32)[i],
            96 // (4, 8, 16, 32)[i],
        )
        for i in indices
    ]


def test_channels_and_strides_are_attributes():
    model = small(return_idx=[2, 3])
    assert (model.out_channels, model.out_strides) == ([512, 1024], [16, 32])


@pytest.mark.parametrize("indices", [[], [4], [-1]])
def test_stages_that_do_not_exist_are_refused(indices):
    with pytest.raises(ConfigError) as caught:
        small(return_idx=indices)
    assert (
        str(caught.value)
        == f"HGNetv2.return_idx is {indices}, expected numbers from 0 to 3"
    )


@pytest.mark.parametrize("stage", [-2, 4])
def test_freezing_a_stage_that_does_not_exist_is_refused(stage):
    with pytest.raises(ConfigError) as caught:
        small(freeze_at=stage)
    assert (
        str(caught.value)
        == f"HGNetv2.freeze_at is {stage}, expected -1 (nothing) to 3"
    )


# ---- freezing ----


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ({"freeze_at": -1, "freeze_stem_only": True}, []),
        ({"freeze_at": -1, "freeze_stem_only": False}, []),
        ({"freeze_at": 0, "freeze_stem_only": True}, ["stem"]),
        ({"freeze_at": 3, "freeze_stem_only": True}, ["stem"]),
        ({"freeze_at": 0, "freeze_stem_only": False}, ["stem", "0"]),
        ({"freeze_at": 2, "freeze_stem_only": False}, ["stem", "0", "1", "2"]),
        ({"freeze_at": -1, "return_idx": [1, 2]}, ["3"]),
    ],
)
def test_parts_are_frozen_as_the_settings_say(settings, frozen):
    assert frozen_parts(small(**settings)) == frozen


def test_frozen_norms_hold_their_values_as_buffers():
    model = small(freeze_norm=True)
    assert not any(".bn." in name for name, _ in model.named_parameters())
    assert {name.rsplit(".", 1)[1] for name, _ in model.named_buffers()} == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
    }
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_frozen_norm_computes_what_a_norm_in_eval_mode_does():
    plain, frozen, x = (
        randomize(small()).eval(),
        small(freeze_norm=True).train(),
        torch.rand(1, 3, 64, 64),
    )
    frozen.load_state_dict(
        {
            k: v
            for k, v in plain.state_dict().items()
            if "num_batches_tracked" not in k
        }
    )
    for a, b in zip(plain(x), frozen(x)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_loading_into_a_frozen_norm_drops_the_count_of_batches():
    plain, frozen = small(), small(freeze_norm=True)
    frozen.load_state_dict(plain.state_dict())
    norm = frozen.stem.stem1.bn
    assert isinstance(norm, FrozenBatchNorm2d) and torch.equal(
        norm.running_var, plain.stem.stem1.bn.running_var
    )


# ---- start weights ----


@pytest.fixture(scope="module")
def timm_model():
    torch.manual_seed(1)
    return randomize(
        timm.create_model("hgnetv2_b0", pretrained=False, features_only=False)
    ).eval()


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No cache, and a socket that fails the test if anything tries to use it."""
    import huggingface_hub.constants

    def refuse(*arguments, **settings):
        raise AssertionError(f"a connection to {arguments} was tried")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache")
    )
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.mark.parametrize("freeze_norm", [False, True])
def test_weights_of_timm_load_strictly_and_give_timms_features(
    freeze_norm, timm_model, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        module_under_test,
        "timm_state_dict",
        lambda name: timm_model.state_dict(),
    )
    model = small(
        pretrained=True,
        return_idx=[3],
        freeze_norm=freeze_norm,
        local_model_dir=str(tmp_path),
    ).eval()
    model.load_pretrained()
    x = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(
        model(x)[0], timm_model.forward_features(x), rtol=1e-4, atol=1e-4
    )


def test_the_model_that_timm_is_asked_for_is_the_official_start(
    timm_model, monkeypatch, tmp_path
):
    asked = []
    monkeypatch.setattr(
        module_under_test,
        "timm_state_dict",
        lambda name: asked.append(name) or timm_model.state_dict(),
    )
    small(pretrained=True, local_model_dir=str(tmp_path)).load_pretrained()
    assert asked == ["hgnetv2_b0.ssld_stage1_in22k_in1k"]


def test_a_local_file_comes_first_and_the_log_says_what_was_loaded(
    no_network, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("dfine"), "propagate", True)
    source = randomize(small())
    torch.save(source.state_dict(), tmp_path / "PPHGNetV2_B0_stage1.pth")
    model = small(pretrained=True, local_model_dir=str(tmp_path))
    with caplog.at_level(logging.INFO, "dfine"):
        model.load_pretrained()
    count = len(model.state_dict())
    assert torch.equal(
        model.stem.stem1.conv.weight, source.stem.stem1.conv.weight
    )
    assert (
        f"HGNetv2 B0: loaded {count} of {count} tensors from {tmp_path}/PPHGNetV2_B0_stage1.pth"
        in caplog.text
    )


def test_without_a_file_and_without_a_network_one_line_says_what_to_do(
    no_network, tmp_path
):
    with pytest.raises(CheckpointError) as caught:
        small(pretrained=True, local_model_dir=str(tmp_path)).load_pretrained()
    assert str(caught.value) == (
        "ImageNet weights for HGNetv2 B0 not found: "
        f"no file {tmp_path}/PPHGNetV2_B0_stage1.pth, "
        "and timm/hgnetv2_b0.ssld_stage1_in22k_in1k is not in the local cache and "
        "https://huggingface.co cannot be reached (HF_HUB_OFFLINE is set); "
        "put the file there, or start without it: -u HGNetv2.pretrained=False"
    )


def test_a_file_of_another_variant_is_refused_with_the_first_tensor_that_differs(
    no_network, tmp_path
):
    torch.save(
        HGNetv2(
            "B1",
            use_lab=True,
            freeze_at=-1,
            freeze_norm=False,
            pretrained=False,
        ).state_dict(),
        tmp_path / "PPHGNetV2_B0_stage1.pth",
    )
    with pytest.raises(
        CheckpointError,
        match=r"PPHGNetV2_B0_stage1.pth does not fit HGNetv2 B0: \d+ tensors differ, first stages\.",
    ):
        small(pretrained=True, local_model_dir=str(tmp_path)).load_pretrained()


def test_a_file_with_other_keys_is_refused(no_network, tmp_path):
    torch.save(
        {"fc.weight": torch.zeros(2)}, tmp_path / "PPHGNetV2_B0_stage1.pth"
    )
    with pytest.raises(
        CheckpointError,
        match=r"PPHGNetV2_B0_stage1.pth does not fit HGNetv2 B0: \d+ tensors differ, first fc\.weight",
    ):
        small(pretrained=True, local_model_dir=str(tmp_path)).load_pretrained()


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        3,
        {"model": {"fc.weight": torch.zeros(2)}},
        {0: torch.zeros(2)},
        {"fc.weight": 1.0},
    ],
    ids=str,
)
def test_a_file_without_a_state_dict_is_refused(content, no_network, tmp_path):
    torch.save(content, tmp_path / "PPHGNetV2_B0_stage1.pth")
    with pytest.raises(
        CheckpointError,
        match=r"PPHGNetV2_B0_stage1.pth is not a state dict \(names to tensors\)",
    ):
        small(pretrained=True, local_model_dir=str(tmp_path)).load_pretrained()


def test_nothing_is_read_without_pretrained(no_network, tmp_path):
    model = small(pretrained=False, local_model_dir=str(tmp_path))
    before = model.stem.stem1.conv.weight.clone()
    model.load_pretrained()
    assert torch.equal(model.stem.stem1.conv.weight, before)


@pytest.mark.parametrize("name", ["Pico", "Femto", "Atto"])
def test_small_variants_start_from_the_weights_of_b0_that_fit(name, tmp_path):
    source = randomize(small())
    torch.save(source.state_dict(), tmp_path / "PPHGNetV2_B0_stage1.pth")
    model = HGNetv2(
        name,
        use_lab=True,
        return_idx=[2],
        freeze_at=-1,
        freeze_norm=False,
        local_model_dir=str(tmp_path),
    )
    model.load_pretrained()
    theirs = source.state_dict()
    differing = [
        key
        for key, value in model.state_dict().items()
        if not torch.equal(value, theirs[key])
    ]
    assert all(key.startswith("stages.2.") for key in differing)
    assert bool(differing) == (name == "Atto")


def test_stages_that_a_small_variant_lacks_cannot_be_returned():
    with pytest.raises(ConfigError, match="expected numbers from 0 to 2"):
        HGNetv2("Pico", return_idx=[2, 3], pretrained=False)
