"""Learning rate and weight decay of each parameter group."""

import pytest
import torch
from torch import nn

from src.core import YAMLConfig
from src.core.build import create
from src.core.errors import ConfigError
from src.optim.param_groups import build_param_groups
from tests.fixtures.config_files import CONFIGS
from tests.fixtures.tiny import tiny_config


class Net(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.embedding = nn.Embedding(5, 4)
        self.token = nn.Parameter(torch.zeros(1, 3, 4))
        self.layer_scale = nn.Parameter(torch.ones(4))
        self.constant = nn.Parameter(torch.ones(1), requires_grad=False)


@pytest.fixture
def net():
    return Net()


def members(net: nn.Module, groups) -> dict[str, set[str]]:
    """Return the names of parameters by the name of their group."""
    names = {id(p): n for n, p in net.named_parameters()}
    return {
        group["name"]: {names[id(p)] for p in group["params"]}
        for group in groups
    }


# ---- the groups of the project's models ----

PUBLISHED = {  # size: tensors and parameters of each group, from the published training recipe
    "n": [(186, 1_850_396), (151, 16_015), (91, 1_916_280)],
    "s": [(186, 1_850_396), (191, 38_135), (111, 8_433_344)],
    "m": [(262, 6_026_626), (242, 52_780), (140, 13_510_656)],
    "l": [(75, 13_482_752), (220, 39_936), (274, 17_696_534)],
    "x": [(125, 33_206_400), (226, 56_576), (277, 29_333_142)],
}
RATES = {  # learning rate and decay of each group
    "n": [(4e-4, 1e-4), (8e-4, 0), (8e-4, 1e-4)],
    "s": [(1e-4, 1e-4), (2e-4, 0), (2e-4, 1e-4)],
    "m": [(2e-5, 1e-4), (2e-4, 0), (2e-4, 1e-4)],
    "l": [(1.25e-5, 1.25e-4), (2.5e-4, 0), (2.5e-4, 1.25e-4)],
    "x": [(2.5e-6, 1.25e-4), (2.5e-4, 0), (2.5e-4, 1.25e-4)],
}


@pytest.fixture(scope="module", params="nsmlx")
def published(request):
    """Each size of D-FINE with HGNetv2, by letter."""
    cfg = YAMLConfig(
        CONFIGS / f"dfine/dfine_hgnetv2_{request.param}_coco.yml",
        HGNetv2={"pretrained": False},
    )
    return request.param, cfg.model, cfg.optimizer.param_groups


def test_groups_of_a_published_size_are_disjoint_and_complete(published):
    _, model, groups = published
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(
        id(p) for p in model.parameters() if p.requires_grad
    )


def test_groups_of_a_published_size_have_the_published_members(published):
    size, _, groups = published
    assert [
        (len(group["params"]), sum(p.numel() for p in group["params"]))
        for group in groups
    ] == PUBLISHED[size]


def test_groups_of_a_published_size_have_the_published_rates(published):
    size, _, groups = published
    assert [(group["lr"], group["weight_decay"]) for group in groups] == RATES[
        size
    ]


@pytest.fixture(scope="module")
def dinov3():
    """A small DINOv3 detector whose ViT has its own learning rate."""
    cfg = tiny_config(
        optimizer={
            "params": [{"params": r"^backbone\.vit\.", "lr": 1e-5}],
            "decay_matrices_only": True,
            "lr": 2.5e-4,
            "weight_decay": 0.1,
        }
    )
    return cfg.model, cfg.optimizer.param_groups


def test_groups_of_a_dinov3_detector_are_disjoint_and_complete(dinov3):
    model, groups = dinov3
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(
        id(p) for p in model.parameters() if p.requires_grad
    )


def test_vit_has_a_rate_of_its_own_with_and_without_decay(dinov3):
    _, groups = dinov3
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        (r"^backbone\.vit\.", 1e-5, 0.1),
        (r"^backbone\.vit\., not decayed", 1e-5, 0.0),
        ("the rest", 2.5e-4, 0.1),
        ("the rest, not decayed", 2.5e-4, 0.0),
    ]


@pytest.mark.parametrize(
    "part",
    [
        ".norm",
        "bias",
        "gamma_",
        "cls_token",
        "reg_token",
        "adapter.norms",
        "tap_mix",
    ],
)
def test_norms_biases_layer_scales_and_tokens_are_not_decayed(dinov3, part):
    model, groups = dinov3
    decayed = {
        id(p)
        for group in groups
        if group["weight_decay"]
        for p in group["params"]
    }
    found = [
        (name, id(p) in decayed)
        for name, p in model.named_parameters()
        if part in name and p.requires_grad
    ]
    assert found, f"no parameter has {part} in its name"
    assert not [name for name, is_decayed in found if is_decayed]


def test_all_matrices_of_a_dinov3_detector_are_decayed(dinov3):
    model, groups = dinov3
    decayed = {
        id(p)
        for group in groups
        if group["weight_decay"]
        for p in group["params"]
    }
    weights = [
        m.weight
        for m in model.modules()
        if isinstance(m, (nn.Linear, nn.Conv2d, nn.Embedding))
    ]
    assert len(weights) > 50
    assert all(
        id(weight) in decayed for weight in weights if weight.requires_grad
    )


def test_whole_size_s_exempts_every_vector_and_token():
    cfg = YAMLConfig(
        CONFIGS / "dfine/dfine_dinov3_s_coco.yml",
        DINOv3Backbone={"pretrained": False},
    )
    named = members(cfg.model, cfg.optimizer.param_groups)
    exempt = set().union(
        *(
            names
            for name, names in named.items()
            if name.endswith("not decayed")
        )
    )
    vectors = {
        name
        for name, p in cfg.model.named_parameters()
        if p.requires_grad
        and (p.ndim < 2 or "token" in name or name.endswith("tap_mix"))
    }
    assert exempt == vectors


# ---- rules ----


def test_parameters_that_nothing_matches_form_the_last_group(net):
    groups = build_param_groups(net, [{"params": "backbone", "lr": 1.0}])
    assert [group["name"] for group in groups] == ["backbone", "the rest"]
    assert members(net, groups)["backbone"] == {
        "backbone.0.weight",
        "backbone.0.bias",
        "backbone.1.weight",
        "backbone.1.bias",
    }


@pytest.mark.parametrize("groups", [None, []])
def test_without_expressions_there_is_one_group(net, groups):
    assert [group["name"] for group in build_param_groups(net, groups)] == [
        "the rest"
    ]


def test_expression_is_searched_anywhere_in_the_name(net):
    assert members(net, build_param_groups(net, [{"params": "bias$"}]))[
        "bias$"
    ] == {
        "backbone.0.bias",
        "backbone.1.bias",
        "head.bias",
        "norm.bias",
        "attention.in_proj_bias",
        "attention.out_proj.bias",
    }


def test_settings_of_a_group_are_handed_on(net):
    assert {
        k: v
        for k, v in build_param_groups(
            net, [{"params": "head", "lr": 0.5, "weight_decay": 0}]
        )[0].items()
        if k != "params"
    } == {"lr": 0.5, "weight_decay": 0, "name": "head"}


def test_groups_of_the_caller_are_left_as_they_were(net):
    groups = [{"params": "head", "lr": 0.5}]
    build_param_groups(net, groups)
    assert groups == [{"params": "head", "lr": 0.5}]


def test_empty_group_is_left_out(net):
    assert [
        group["name"]
        for group in build_param_groups(
            net, [{"params": "nothing"}, {"params": ".*"}]
        )
    ] == [".*"]


def test_frozen_parameters_are_left_out(net):
    net.head.requires_grad_(False)
    names = set().union(*members(net, build_param_groups(net, None)).values())
    assert names.isdisjoint({"head.weight", "head.bias", "constant"})


def test_parameter_under_two_names_comes_once(net):
    net.tied = net.head
    assert (
        len(build_param_groups(net, None)[0]["params"])
        == len(list(Net().parameters())) - 1
    )


def test_parameter_that_matches_two_expressions_is_named_with_both(net):
    with pytest.raises(
        ConfigError,
        match=r"^optimizer.params: head.weight matches both 'head' and 'weight\$'$",
    ):
        build_param_groups(
            net,
            [
                {"params": "norm.bias"},
                {"params": "head"},
                {"params": "weight$"},
            ],
        )


def test_invalid_expression_is_refused(net):
    with pytest.raises(
        ConfigError,
        match=r"^optimizer.params: '\(head' is not a regular expression: missing \), unterminated subpattern",
    ):
        build_param_groups(net, [{"params": "(head"}])


@pytest.mark.parametrize(
    "group", [{"lr": 1.0}, {"params": ["head"]}, {"params": None}]
)
def test_group_without_an_expression_is_refused(net, group):
    with pytest.raises(
        ConfigError,
        match="needs 'params', a regular expression over parameter names$",
    ) as caught:
        build_param_groups(net, [group])
    assert repr(group) in str(caught.value)


def test_decay_of_matrices_alone_splits_each_group(net):
    groups = members(
        net,
        build_param_groups(
            net, [{"params": "backbone"}], decay_matrices_only=True
        ),
    )
    assert groups == {
        "backbone": {"backbone.0.weight"},
        "backbone, not decayed": {
            "backbone.0.bias",
            "backbone.1.weight",
            "backbone.1.bias",
        },
        "the rest": {
            "head.weight",
            "attention.in_proj_weight",
            "attention.out_proj.weight",
            "embedding.weight",
        },
        "the rest, not decayed": {
            "head.bias",
            "norm.weight",
            "norm.bias",
            "attention.in_proj_bias",
            "attention.out_proj.bias",
            "token",
            "layer_scale",
        },
    }


def test_decay_of_matrices_alone_overrides_the_groups_own_decay(net):
    groups = build_param_groups(
        net,
        [{"params": "backbone", "weight_decay": 0.5}],
        decay_matrices_only=True,
    )
    assert [group.get("weight_decay") for group in groups] == [
        0.5,
        0.0,
        None,
        0.0,
    ]


# ---- torch's optimizers over the groups ----


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
@pytest.mark.parametrize(
    "settings", [{}, {"foreach": True}, {"fused": False}], ids=str
)
def test_optimizer_learns_with_each_implementation(net, name, settings):
    optimizer = create({"type": name, "lr": 0.1, **settings}, model=net)
    net.head(torch.ones(2, 4)).sum().backward()
    before = net.head.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(net.head.weight, before)


def test_optimizer_uses_the_groups_settings_and_its_own(net):
    optimizer = create(
        {
            "type": "AdamW",
            "lr": 0.1,
            "weight_decay": 0.2,
            "betas": [0.8, 0.9],
            "params": [{"params": "head", "lr": 0.5}],
        },
        model=net,
    )
    assert [
        (g["lr"], g["weight_decay"], tuple(g["betas"]))
        for g in optimizer.param_groups
    ] == [
        (0.5, 0.2, (0.8, 0.9)),
        (0.1, 0.2, (0.8, 0.9)),
    ]


@pytest.mark.parametrize(
    ("group", "fault"),
    [
        (
            {"params": "head", "lrr": 1},
            "unknown key 'optimizer.params[0].lrr'; did you mean 'lr'?",
        ),
        (
            {"params": "head", "lr": "fast"},
            "optimizer.params[0].lr is 'fast', expected a number",
        ),
        (
            {"params": "head", "betas": 3},
            "optimizer.params[0].betas is 3, expected a list of numbers",
        ),
        (
            {"params": "head", "lr": -1.0},
            "optimizer.params[0].lr is -1.0, expected at least 0",
        ),
        (
            {"params": "head", "weight_decay": -1.0},
            "optimizer.params[0].weight_decay is -1.0, expected at least 0",
        ),
    ],
)
def test_setting_of_a_group_that_the_optimizer_does_not_take_is_refused(
    net, group, fault
):
    with pytest.raises(ConfigError) as caught:
        create({"type": "AdamW", "params": [group]}, model=net)
    assert str(caught.value) == fault


def test_optimizer_refuses_a_rate_below_zero(net):
    with pytest.raises(
        ConfigError,
        match="^AdamW cannot be built: Invalid learning rate: -1.0$",
    ):
        create({"type": "AdamW", "lr": -1.0}, model=net)
