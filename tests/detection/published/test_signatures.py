"""Signatures: one for every architecture, equal to those of the models that configurations describe."""

import pytest
import torch

import src  # noqa: F401  every class registers itself
from src.core import YAMLConfig
from src.core.build import create
from src.detection.model_table import ROOT, read_table
from src.detection.published.signatures import (
    SIGNATURES,
    architecture_of,
    most_similar,
    signature,
)
from tests.fixtures.published_states import file_of, state_without_data

TABLE = read_table()
CONFIGS = {entry.config: entry for entry in TABLE.values()}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_describes_the_architecture_of_its_entry(config):
    cfg = YAMLConfig(ROOT / config)
    cfg.without_pretrained()
    with torch.device("meta"):
        model = create(
            cfg.yaml_cfg["model"], cfg.resolved_cfg, load_files=False
        )
    entry = CONFIGS[config]
    found = signature(model.state_dict())
    assert SIGNATURES.get(entry.architecture) == found, (
        f'"{entry.architecture}": {found}'
    )


def test_every_stored_signature_belongs_to_a_model_of_the_table():
    architectures = {entry.architecture for entry in TABLE.values()}
    assert architectures == set(SIGNATURES)
    assert len(set(SIGNATURES.values())) == len(SIGNATURES)


@pytest.mark.parametrize("size", ["s", "m", "l", "x"])
def test_the_official_keys_of_deimv2_have_the_signature(size):
    weights = file_of(state_without_data(f"deimv2_{size}")).weights
    assert architecture_of(weights) == f"deimv2_{size}"


def test_classes_and_tables_of_the_input_size_do_not_count():
    state = state_without_data("dfine_n", classes=3)
    del state["decoder.anchors"], state["decoder.up"]
    assert architecture_of(state) == "dfine_n"


def test_one_other_shape_makes_an_unknown_architecture_that_resembles_a_known_one():
    state = state_without_data("dfine_s")
    key = "decoder.decoder.layers.0.linear1.weight"
    state[key] = torch.zeros(7, 256, device="meta")
    assert architecture_of(state) is None
    assert most_similar(state) == ("dfine_s", ["decoder"])


def test_nothing_resembles_tensors_without_a_known_part():
    assert most_similar({"backbone.a": torch.zeros(1)}) is None
