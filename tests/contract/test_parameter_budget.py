"""Models have the sizes stated in their configurations' top comments; the 25 M model is within budget."""

import re
from typing import NamedTuple

import pytest
import torch
from torch import nn

from src.core import YAMLConfig
from tests.fixtures.golden import ROOT

FAMILIES = ("dfine", "deim", "rtv4", "deimv2")
FILES = sorted(
    str(path.relative_to(ROOT))
    for family in FAMILIES
    for path in (ROOT / "configs" / family).rglob(f"{family}_*.yml")
    if path.parent.name != "include"
)
CUSTOM = [
    file for file in FILES if file.endswith(("_custom.yml", "2custom.yml"))
]


class Size(NamedTuple):
    """Sizes stated by a configuration and sizes of the model built from it."""

    file: str
    comment: str
    total: int
    parts: dict[str, int]


@pytest.fixture(scope="module", params=FILES)
def size(request) -> Size:
    comment = top_comment(request.param)
    classes = re.search(r"\((\d+) class", comment)
    backbone = "DINOv3Backbone" if "dinov3" in request.param else "HGNetv2"
    with torch.device("meta"):
        model = YAMLConfig(
            ROOT / request.param,
            num_classes=int(classes[1]) if classes else 80,
            **{backbone: {"pretrained": False}},
        ).model
    parts = {"encoder": model.encoder, "decoder": model.decoder}
    if backbone == "DINOv3Backbone":
        parts |= {"ViT": model.backbone.vit, "adapter": model.backbone.adapter}
    return Size(
        request.param,
        comment,
        count(model),
        {name: count(part) for name, part in parts.items()},
    )


def top_comment(file: str) -> str:
    """Return the comment lines that a file begins with, joined."""
    lines = (ROOT / file).read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end])


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def millions(number: int, like: str) -> str:
    """Return a number in millions, with as many decimals as `like`."""
    return f"{number / 1e6:.{len(like.partition('.')[2])}f}"


def test_no_model_configuration_is_overlooked():
    assert len(FILES) >= 29 + 22 + 2 * 17


def test_the_count_in_the_top_comment_is_what_is_built(size):
    claim = re.search(r"([\d.]+) M parameters \(\d+ class", size.comment)
    assert claim, (
        f"{size.file}: no '12.3 M parameters (80 classes)' in {size.comment!r}"
    )
    assert millions(size.total, claim[1]) == claim[1]


def test_the_parts_in_the_top_comment_are_what_is_built(size):
    claims = {
        part: number
        for number, part in re.findall(
            r"([\d.]+) M (ViT|adapter|encoder|decoder)", size.comment
        )
    }
    assert claims == {
        name: millions(size.parts[name], number)
        for name, number in claims.items()
    }


@pytest.mark.parametrize(
    "file",
    [
        "dfine_dinov3_s_coco.yml",
        "dfine_dinov3_s2_coco.yml",
        "dfine_dinov3_s2_windows_coco.yml",
        "dfine_dinov3_t_coco.yml",
        "dfine_dinov3_l_coco.yml",
        "dfine_dinov3_x_coco.yml",
        "custom/dfine_dinov3_s2_custom.yml",
        "custom/dfine_dinov3_s_custom.yml",
        "dfine_dinov3_s_finetune_coco.yml",
        "dfine_dinov3_vitb_coco.yml",
        "objects365/dfine_dinov3_s_obj365.yml",
        "objects365/dfine_dinov3_s2_obj365.yml",
        "deim/dfine_dinov3_s_deim_coco.yml",
    ],
)
def test_the_top_comment_of_a_dinov3_size_names_its_parts(file):
    assert set(
        re.findall(
            r"M (ViT|adapter|encoder|decoder)",
            top_comment(f"configs/dfine/{file}"),
        )
    ) == {
        "ViT",
        "adapter",
        "encoder",
        "decoder",
    }


@pytest.mark.parametrize("file", FILES)
def test_the_command_in_the_top_comment_names_the_file_itself(file):
    assert f"train.py -c {file} " in top_comment(file)


@pytest.mark.parametrize("file", CUSTOM)
def test_the_top_comment_of_a_configuration_for_own_data_names_the_weights_to_start_from(
    file,
):
    assert re.search(r" -t [\w./]+( |$)", top_comment(file))


@pytest.mark.parametrize("file", CUSTOM)
def test_a_configuration_for_own_data_loads_nothing_by_itself(file):
    settings = YAMLConfig(ROOT / file).yaml_cfg
    assert settings.get("tuning") is None
    assert settings.get("resume") is None
    assert "distillation" not in settings


@pytest.fixture(
    scope="module",
    params=["dfine_dinov3_s_coco.yml", "dfine_dinov3_s_finetune_coco.yml"],
)
def small(request) -> YAMLConfig:
    """Size S trained in phases, and the variant whose whole ViT is fine-tuned."""
    return YAMLConfig(
        ROOT / "configs/dfine" / request.param,
        DINOv3Backbone={"pretrained": False},
    )


def trained(cfg: YAMLConfig) -> dict[str, nn.Parameter]:
    """Return the parameters that are ever trained, by name."""
    grouped = {
        id(p) for group in cfg.optimizer.param_groups for p in group["params"]
    }
    return {
        name: p for name, p in cfg.model.named_parameters() if id(p) in grouped
    }


def test_dinov3_s_has_between_24_and_26_million_parameters(small):
    assert 24.0e6 <= count(small.model) <= 26.0e6


def test_dinov3_s_has_a_whole_vit_of_size_s(small):
    assert count(small.model.backbone.vit) == 21_586_944


@pytest.fixture(scope="module", params=["dinov3_s2", "dinov3_t"])
def second_generation(request, tmp_path_factory):
    """Return the name and the COCO model of an architecture of the second generation, without weights."""
    include = ROOT / "configs/dfine/include"
    config = tmp_path_factory.mktemp("config") / "config.yml"
    names = ["optimizer", "dfine_dinov3", request.param]
    files = [str(include / f"{name}.yml") for name in names]
    config.write_text(f"__include__: {files}\n")
    cfg = YAMLConfig(
        config, num_classes=80, DINOv3Backbone={"pretrained": False}
    )
    return request.param, cfg.model


def test_parts_of_the_second_generation_have_their_sizes(second_generation):
    name, model = second_generation
    backbone = model.backbone
    parts = (backbone.vit, backbone.adapter, model.encoder, model.decoder)
    sizes = {
        "dinov3_s2": [21_586_944, 261_785, 1_367_360, 2_760_558],
        "dinov3_t": [5_486_208, 149_465, 1_367_360, 2_760_558],
    }
    assert [count(part) for part in parts] == sizes[name]
    assert count(model) == sum(sizes[name])
    assert name == "dinov3_t" or 24.0e6 <= count(model) <= 26.0e6


def test_deployed_models_of_the_second_generation_have_their_sizes(
    second_generation,
):
    name, model = second_generation
    sizes = {"dinov3_s2": 25_894_308, "dinov3_t": 9_690_468}
    assert count(model.deploy()) == sizes[name]


def test_maps_of_the_second_generation_enter_the_encoder_without_projection(
    second_generation,
):
    _, model = second_generation
    assert model.backbone.out_channels == [192, 192, 192]
    assert count(model.encoder.input_proj) == 0


def test_details_of_the_second_generation_are_added_at_stride_8_only(
    second_generation,
):
    _, model = second_generation
    adapter = model.backbone.adapter
    assert adapter.detail_strides == (8,)
    assert len(adapter.detail.layers) == 3


def test_dinov3_s_learns_the_vit_at_1e_5_and_the_rest_at_25e_5(small):
    rates = {
        id(p): group["lr"]
        for group in small.optimizer.param_groups
        for p in group["params"]
    }
    expected = {
        id(p): 1e-5 if name.startswith("backbone.vit.") else 2.5e-4
        for name, p in trained(small).items()
    }
    assert rates == pytest.approx(expected)


def test_dinov3_s_decays_matrices_but_no_norms_biases_layer_scales_or_tokens(
    small,
):
    decays = {
        id(p): group["weight_decay"]
        for group in small.optimizer.param_groups
        for p in group["params"]
    }
    tokens = ("cls_token", "reg_token", "tap_mix")
    wrong = [
        name
        for name, p in trained(small).items()
        if decays[id(p)]
        != (0.0 if p.ndim < 2 or name.endswith((*tokens, "bias")) else 1.25e-4)
    ]
    assert wrong == []


def test_dinov3_s_thaws_the_last_four_blocks_and_the_final_norm_after_ten_epochs():
    cfg = YAMLConfig(
        ROOT / "configs/dfine/dfine_dinov3_s_coco.yml",
        DINOv3Backbone={"pretrained": False},
    )
    thawing = {
        name.split("vit.")[1]
        for group in cfg.optimizer.param_groups
        if group.get("thaw_epoch") == 10
        for name, p in cfg.model.named_parameters()
        if any(p is q for q in group["params"])
    }
    assert {
        name.split(".")[1] if name.startswith("blocks.") else name
        for name in thawing
    } == {
        "8",
        "9",
        "10",
        "11",
        "norm.weight",
        "norm.bias",
    }


def test_the_finetune_variant_of_dinov3_s_trains_the_whole_vit_from_the_start():
    cfg = YAMLConfig(
        ROOT / "configs/dfine/dfine_dinov3_s_finetune_coco.yml",
        DINOv3Backbone={"pretrained": False},
    )
    assert {
        name
        for name, _ in cfg.model.named_parameters()
        if name.startswith("backbone.vit.")
    } <= trained(cfg).keys()
    assert not any(
        "thaw_epoch" in group for group in cfg.optimizer.param_groups
    )
