"""A configuration is checked against the arguments of the registered classes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pytest
from torch import Tensor

from src.core.durations import EpochLength
from src.core.errors import ConfigError
from src.core.validate import did_you_mean, matches, require, type_name
from tests.fixtures.config_files import config_from
from tests.fixtures.tiny import tiny_config

DATASET = (
    "train_dataloader:\n  type: DataLoader\n  dataset:\n    type: CocoDetection\n"
    "    img_folder: a\n    ann_file: b\n"
)


def faults(folder, text: str, **overrides) -> str:
    """Return the message about a configuration, with the file's path shortened."""
    with pytest.raises(ConfigError) as caught:
        config_from(folder, text, **overrides)
    return str(caught.value).replace(str(folder / "config.yml"), "config.yml")


# ---- unknown keys ----


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "seed: 1\nepoches: 3\n",
            "unknown key 'epoches' (config.yml:2); did you mean 'epochs'?",
        ),
        (
            "hybridencoder: {act: silu}\n",
            "unknown key 'hybridencoder' (config.yml:1); did you mean 'HybridEncoder'?",
        ),
        (
            "numclasses: 3\n",
            "unknown key 'numclasses' (config.yml:1); did you mean 'num_classes'?",
        ),
        ("qwertyuiop: 3\n", "unknown key 'qwertyuiop' (config.yml:1)"),
        (
            "HGNetv2:\n  nme: B0\n",
            "unknown key 'HGNetv2.nme' (config.yml:2); did you mean 'name'?",
        ),
        (
            "DFINE: {backbone: {type: HGNetv2, name: B0, uselab: True}}\n",
            "unknown key 'DFINE.backbone.uselab' (config.yml:1); did you mean 'use_lab'?",
        ),
        (
            "optimizer:\n  type: AdamW\n  weight_deca: 1\n",
            "unknown key 'optimizer.weight_deca' (config.yml:3); did you mean 'weight_decay'?",
        ),
        (
            "lr_scheduler: {type: MultiStepLR, milestones: [1], gama: 1}\n",
            "unknown key 'lr_scheduler.gama' (config.yml:1); did you mean 'gamma'?",
        ),
        (
            "scaler: {type: GradScaler, growth: 2}\n",
            "unknown key 'scaler.growth' (config.yml:1); did you mean 'growth_factor'?",
        ),
        (
            DATASET + "  shufle: True\n",
            "unknown key 'train_dataloader.shufle' (config.yml:7); did you mean 'shuffle'?",
        ),
        (
            DATASET + "    transforms:\n      type: Compose\n      ops:\n"
            "        - {type: Resize, size: [1, 2]}\n        - {type: RandomIoUCrop, pp: 1}\n",
            "unknown key 'train_dataloader.dataset.transforms.ops[1].pp' (config.yml:11); did you mean 'p'?",
        ),
    ],
)
def test_unknown_key_is_named_with_its_line_and_the_nearest_known_one(
    tmp_path, text, fault
):
    assert faults(tmp_path, text) == f"the configuration has a fault: {fault}"


def test_unknown_key_from_the_command_line_is_reported_as_such(tmp_path):
    assert faults(
        tmp_path, "HGNetv2: {name: B0}\n", HGNetv2={"nme": "B1"}
    ).endswith("unknown key 'HGNetv2.nme' (command line); did you mean 'name'?")


def test_unknown_key_from_an_include_names_that_file(tmp_path):
    (tmp_path / "base.yml").write_text("# a comment\nepoches: 3\n")
    assert f"unknown key 'epoches' ({tmp_path / 'base.yml'}:2)" in faults(
        tmp_path, "__include__: [base.yml]\n"
    )


@pytest.mark.parametrize("key", ["path", "self", "cfg"])
def test_override_is_not_treated_as_an_argument_of_the_constructor(
    tmp_path, key
):
    assert f"unknown key '{key}' (command line)" in faults(
        tmp_path, "epochs: 3\n", **{key: 1}
    )


def test_all_faults_are_listed_at_once(tmp_path):
    assert faults(tmp_path, "epochs: abc\nfoo: 1\nuse_amp: 3\n") == (
        "the configuration has 3 faults: epochs is 'abc', expected an integer (config.yml:1); "
        "unknown key 'foo' (config.yml:2); use_amp is 3, expected true or false (config.yml:3)"
    )


# ---- types ----


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "epochs: abc\n",
            "epochs is 'abc', expected an integer (config.yml:1)",
        ),
        ("epochs: 2.5\n", "epochs is 2.5, expected an integer (config.yml:1)"),
        (
            "epochs: True\n",
            "epochs is True, expected an integer (config.yml:1)",
        ),
        ("epochs: ~\n", "epochs is None, expected an integer (config.yml:1)"),
        ("epochs: [3]\n", "epochs is [3], expected an integer (config.yml:1)"),
        ("use_amp: 1\n", "use_amp is 1, expected true or false (config.yml:1)"),
        (
            "use_amp: 'yes'\n",
            "use_amp is 'yes', expected true or false (config.yml:1)",
        ),
        (
            "seed: x\n",
            "seed is 'x', expected an integer or null (config.yml:1)",
        ),
        (
            "clip_max_norm: much\n",
            "clip_max_norm is 'much', expected a number (config.yml:1)",
        ),
        (
            "output_dir: 3\n",
            "output_dir is 3, expected a string (config.yml:1)",
        ),
        (
            "task: segmentation\n",
            "task is 'segmentation', expected one of 'detection' (config.yml:1)",
        ),
        (
            "num_classes: abc\n",
            "num_classes is 'abc', DFINECriterion expects an integer (config.yml:1)",
        ),
        (
            "eval_spatial_size: 640\n",
            "eval_spatial_size is 640, DFINETransformer expects a list of integers or null (config.yml:1)",
        ),
        (
            "HybridEncoder:\n  act: 5\n",
            "HybridEncoder.act is 5, expected a string (config.yml:2)",
        ),
        (
            "HybridEncoder: 5\n",
            "HybridEncoder is 5, expected a mapping of its settings (config.yml:1)",
        ),
        (
            "DFINETransformer:\n  num_points: [3, x, 3]\n",
            (
                "DFINETransformer.num_points is [3, 'x', 3], "
                "expected an integer or a list of integers (config.yml:2)"
            ),
        ),
        (
            "HGNetv2: {name: B9}\n",
            "HGNetv2.name is 'B9', expected one of 'B0', 'B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'Pico', "
            "'Femto', 'Atto' (config.yml:1)",
        ),
        (
            "optimizer: {type: AdamW, lr: fast}\n",
            "optimizer.lr is 'fast', expected a number (config.yml:1)",
        ),
        (
            "optimizer: {type: AdamW, betas: [0.9]}\n",
            "optimizer.betas is [0.9], expected a list of numbers (config.yml:1)",
        ),
        (
            "optimizer: {type: AdamW, params: {params: x}}\n",
            "optimizer.params is {'params': 'x'}, expected a list of mappings or null (config.yml:1)",
        ),
        (
            "lr_scheduler: {type: MultiStepLR, milestones: abc}\n",
            "lr_scheduler.milestones is 'abc', expected a list of lengths (config.yml:1)",
        ),
        (
            "ema: {type: ModelEMA, decay: '1e-4'}\n",
            "ema.decay is '1e-4', expected a number or null (config.yml:1)",
        ),
    ],
)
def test_value_of_a_wrong_type_is_named_with_what_was_expected(
    tmp_path, text, fault
):
    assert faults(tmp_path, text) == f"the configuration has a fault: {fault}"


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
def test_value_that_is_not_finite_is_refused(tmp_path, value):
    text = f"seed: 1\noptimizer:\n  type: AdamW\n  lr: {value}\n"
    assert (
        faults(tmp_path, text)
        == "the configuration has a fault: optimizer.lr is not a finite number (config.yml:4)"
    )


def test_not_a_number_deep_inside_a_list_is_refused(tmp_path):
    text = "optimizer:\n  type: AdamW\n  params:\n    - {params: x, lr: .nan}\n"
    assert (
        faults(tmp_path, text)
        == "the configuration has a fault: optimizer.params[0].lr is not a finite number (config.yml:4)"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("epochs: 0\n", "epochs is 0, expected at least 1"),
        ("epochs: -3\n", "epochs is -3, expected at least 1"),
        ("clip_max_norm: -0.1\n", "clip_max_norm is -0.1, expected at least 0"),
        ("print_freq: 0\n", "print_freq is 0, expected at least 1"),
        ("seed: -1\n", "seed is -1, expected at least 0"),
        ("checkpoint_freq: -1\n", "checkpoint_freq is -1, expected at least 0"),
    ],
)
def test_value_out_of_range_is_named_with_the_range(tmp_path, text, fault):
    assert faults(tmp_path, text) == f"{fault} (config.yml:1)"


def test_a_rule_for_learning_rates_without_the_batch_they_were_chosen_for_is_refused(
    tmp_path,
):
    assert faults(tmp_path, "lr_scaling: sqrt\n") == (
        "lr_scaling is 'sqrt', but lr_base_batch_size is not set; set it to the batch size for which the "
        "learning rates were chosen, or remove lr_scaling (config.yml:1)"
    )


def test_an_unknown_rule_for_learning_rates_is_refused_with_those_that_exist(
    tmp_path,
):
    text = "lr_scaling: quadratic\nlr_base_batch_size: 32\n"
    assert faults(tmp_path, text) == (
        "the configuration has a fault: lr_scaling is 'quadratic', expected one of 'linear', 'sqrt' "
        "(config.yml:1)"
    )


# ---- components ----


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "optimizer: {type: AdamQ}\n",
            "optimizer.type is 'AdamQ', which is not registered (config.yml:1); did you mean 'Adam'?",
        ),
        (
            "optimizer: {lr: 1}\n",
            "optimizer has no 'type' that names a class (config.yml:1)",
        ),
        (
            "optimizer: {type: [AdamW]}\n",
            "optimizer has no 'type' that names a class (config.yml:1)",
        ),
        (
            "ema: 5\n",
            "ema is 5, expected a registered name or a mapping with 'type' (config.yml:1)",
        ),
        (
            "DFINE: {backbone: HGNetv3}\n",
            "DFINE.backbone names 'HGNetv3', which is not registered (config.yml:1); did you mean 'HGNetv2'?",
        ),
        (
            "DFINE: {backbone: [5]}\n",
            "DFINE.backbone[0] is 5, expected a registered name or a mapping with 'type' (config.yml:1)",
        ),
        (
            "train_dataloader: {type: DataLoader}\n",
            "train_dataloader needs 'dataset', the name of a registered class (config.yml:1)",
        ),
        (
            "lr_scheduler: {type: MultiStepLR}\n",
            "lr_scheduler.milestones is missing, expected a list of lengths (config.yml:1)",
        ),
        (
            DATASET
            + "    transforms:\n      type: Compose\n      ops: [Resize]\n",
            (
                "train_dataloader.dataset.transforms.ops[0].size is missing, "
                "expected a list of integers (config.yml:9)"
            ),
        ),
        (
            DATASET
            + "    transforms:\n      type: Compose\n      ops:\n        - {type: Resze, size: 3}\n",
            (
                "train_dataloader.dataset.transforms.ops[0].type is 'Resze', "
                "which is not registered (config.yml:10); did you mean 'Resize'?"
            ),
        ),
    ],
)
def test_component_that_cannot_be_built_is_named(tmp_path, text, fault):
    assert faults(tmp_path, text) == f"the configuration has a fault: {fault}"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("optimizer: {type: AdamW, model: x}\n", "optimizer.model"),
        (
            "lr_scheduler: {type: MultiStepLR, milestones: [1], optimizer: x}\n",
            "lr_scheduler.optimizer",
        ),
        ("evaluator: {type: CocoEvaluator, coco_gt: x}\n", "evaluator.coco_gt"),
        ("ema: {type: ModelEMA, model: x}\n", "ema.model"),
    ],
)
def test_argument_that_the_program_supplies_is_refused(tmp_path, text, key):
    assert (
        faults(tmp_path, text)
        == f"the configuration has a fault: {key} is set by the program, "
        "not by a configuration (config.yml:1)"
    )


def test_shared_value_that_contradicts_a_components_own_names_both_places(
    tmp_path,
):
    assert faults(
        tmp_path, "num_classes: 3\nDFINETransformer:\n  num_classes: 4\n"
    ) == (
        "the configuration has a fault: DFINETransformer.num_classes is 4 "
        "(config.yml:3) but the top level says num_classes: 3 (config.yml:1); keep one of them"
    )


def test_shared_value_that_repeats_a_components_own_is_accepted(tmp_path):
    assert (
        config_from(
            tmp_path, "num_classes: 3\nDFINETransformer: {num_classes: 3}\n"
        ).yaml_cfg["num_classes"]
        == 3
    )


def test_shared_value_of_null_counts_as_not_set(tmp_path):
    assert (
        "num_classes"
        not in config_from(
            tmp_path, "num_classes: ~\nDFINETransformer: {num_classes: 4}\n"
        ).yaml_cfg
    )


def test_block_of_null_switches_a_part_off():
    assert tiny_config(lr_scheduler=None).lr_scheduler is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "DFINE: {backbone: DFINE}\n",
            "DFINE.backbone names 'DFINE', which needs itself: DFINE -> DFINE (config.yml:1)",
        ),
        (
            "DFINE:\n  backbone: {type: DFINE, encoder: DFINE}\n",
            "DFINE.backbone.encoder names 'DFINE', which needs itself: DFINE -> DFINE (config.yml:2)",
        ),
    ],
)
def test_component_that_is_injected_into_itself_is_refused_with_the_chain(
    tmp_path, text, fault
):
    assert fault in faults(tmp_path, text)


def test_injected_null_is_accepted(tmp_path):
    assert (
        config_from(tmp_path, DATASET + "    transforms: ~\n").yaml_cfg[
            "train_dataloader"
        ]["dataset"]["transforms"]
        is None
    )


# ---- pieces ----


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "an integer"),
        (float, "a number"),
        (bool, "true or false"),
        (str, "a string"),
        (int | None, "an integer or null"),
        (list[int], "a list of integers"),
        (Sequence[float], "a list of numbers"),
        (Iterable[int], "a list of integers"),
        (tuple[int, ...], "a list of integers"),
        (list, "a list"),
        (dict[str, Any], "a mapping"),
        (list[dict[str, Any]] | None, "a list of mappings or null"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (float | Tensor, "a number"),
        (Mapping[str, float], "a mapping"),
        (Tensor, "Tensor"),
        (Sequence[EpochLength], "a list of lengths"),
        (EpochLength | None, "a length or null"),
        (
            Sequence[tuple[EpochLength, int]],
            "a list of pairs of a length and an integer",
        ),
        (Sequence[int | str], "a list, each item an integer or a string"),
    ],
)
def test_types_are_described_in_a_users_words(annotation, words):
    assert type_name(annotation) == words


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, int),
        (1, float),
        (1.5, float),
        (True, bool),
        ("a", str),
        (None, int | None),
        ([1, 2], list[int]),
        ([1, 2.5], Sequence[float]),
        ([], list[int]),
        ([1, 2], tuple[int, int]),
        ([1, 2, 3], tuple[int, ...]),
        ({"a": 1}, dict[str, int]),
        ("a", Literal["a", "b"]),
        (1, float | Tensor),
        ([1], Iterable[int]),
        (object(), Any),
    ],
)
def test_fitting_value_matches(value, annotation):
    assert matches(value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1.5, int),
        (True, int),
        (True, float),
        (1, bool),
        ("1", int),
        (None, int),
        ([1, "a"], list[int]),
        ("ab", Sequence[str]),
        ("ab", Iterable[str]),
        ([1], tuple[int, int]),
        ({"a": "b"}, dict[str, int]),
        ([1], dict),
        ("c", Literal["a", "b"]),
        (True, Literal[1]),
        ({}, list),
    ],
)
def test_value_of_another_type_does_not_match(value, annotation):
    assert not matches(value, annotation)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("epoches", "; did you mean 'epochs'?"),
        ("EPOCHS", "; did you mean 'epochs'?"),
        ("zzz", ""),
    ],
)
def test_nearest_known_word_is_proposed(word, hint):
    assert did_you_mean(word, ["epochs", "seed"]) == hint


def test_requirement_that_fails_raises_its_message():
    with pytest.raises(ConfigError, match="^two is not one$"):
        require(1 == 2, "two is not one")
