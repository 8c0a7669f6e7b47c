"""The tables about published detectors agree with the models, and the pages with the tables."""

from __future__ import annotations

import re
import shlex

import pytest
import torch

from src.core import YAMLConfig
from src.core.errors import ConfigError
from src.detection import model_page
from src.detection.model_page import (
    commands,
    description,
    short_list,
    table_of_models,
    with_tables,
)
from src.detection.model_table import Entry, InputSize, read_table
from tests.fixtures.tiny import ROOT

TABLE = read_table()

EXPECTED = {
    *(f"dfine_{size}_coco" for size in "nsmlx"),
    *(
        f"dfine_{size}_{data}"
        for size in "smlx"
        for data in ("obj365", "obj2coco")
    ),
    *(f"deim_{size}_coco" for size in "nsmlx"),
    "deim_x_obj2coco",
    *(f"rtv4_{size}_coco" for size in "smlx"),
    *(
        f"deimv2_{size}_coco"
        for size in ("s", "m", "l", "x", "n", "pico", "femto", "atto")
    ),
    *(
        f"dfine_dinov3_{size}_coco"
        for size in ("s", "s2", "s2_windows", "t", "l", "x")
    ),
}


def entry(**fields) -> Entry:
    return Entry(
        **{
            "family": "deim",
            "size": "s",
            "config": "configs/a_coco.yml",
            "name": "a",
            **fields,
        }
    )


def test_the_table_has_all_published_detectors_and_the_own_ones():
    assert set(TABLE) == EXPECTED


@pytest.mark.parametrize("name", TABLE)
def test_an_entry_has_its_facts(name):
    row = TABLE[name]
    assert row.gflops and row.input and row.start_weights
    assert row.licence and row.use
    if name.startswith("dfine_dinov3"):
        assert row.source is None
        assert row.ap is None
    else:
        assert row.source.startswith("https://github.com/")
        assert row.files
    assert (row.ap is None) == (row.ap_source is None)
    assert (row.ap is None) == (row.source is None or row.is_for_objects365)


@pytest.mark.parametrize("name", TABLE)
def test_an_entry_has_the_parameters_and_the_input_size_of_its_model(name):
    row = TABLE[name]
    cfg = YAMLConfig(ROOT / row.config)
    cfg.without_pretrained()
    with torch.device("meta"):
        model = cfg.model
        training = sum(p.numel() for p in model.parameters())
        deployed = sum(p.numel() for p in model.deploy().parameters())
    assert (row.params, row.deployed) == (training, deployed)
    assert cfg.yaml_cfg["eval_spatial_size"] == [row.input, row.input]


@pytest.mark.parametrize("name", TABLE)
def test_the_configuration_for_own_data_is_a_file_for_the_same_architecture(
    name,
):
    row = TABLE[name]
    if row.custom_config is None:
        assert row.family == "dfine_dinov3"
        return
    ours, theirs = (
        YAMLConfig(ROOT / file).yaml_cfg
        for file in (row.config, row.custom_config)
    )
    for block in ("DFINE", "HybridEncoder", "LiteEncoder", "DFINETransformer"):
        assert ours.get(block) == theirs.get(block)


@pytest.mark.parametrize("page", ["docs/models.md", "docs/models_cn.md"])
def test_a_page_has_the_tables_that_are_generated(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert with_tables(text, TABLE) == text, "run: python tools/models.py page"


def test_the_text_outside_the_tables_is_kept():
    page = "# A\n\n" + "".join(
        f"<!-- table: {name} -->\nold\n<!-- end of table -->\ntext of {name}\n"
        for name in ("sizes", "files", "commands")
    )
    written = with_tables(page, {"a": entry()})
    assert "old" not in written
    assert re.findall("text of .*", written) == [
        "text of sizes",
        "text of files",
        "text of commands",
    ]
    assert written.startswith("# A\n\n<!-- table: sizes -->\n| name |")
    assert with_tables(written, {"a": entry()}) == written


def test_a_page_without_a_table_is_refused():
    with pytest.raises(ConfigError) as error:
        with_tables("<!-- table: sizes -->\n<!-- end of table -->\n", {})
    assert str(error.value) == (
        "the page has the tables ['sizes'], expected ['sizes', 'files', 'commands'] between "
        "'<!-- table: NAME -->' and '<!-- end of table -->'"
    )


def test_commands_name_the_model_or_the_file_that_training_writes():
    published = commands(
        entry(source="https://a.b/c", custom_config="configs/a_custom.yml")
    )
    assert published == {
        "evaluate": "python train.py -c configs/a_coco.yml --test-only -r a",
        "fine-tune": "python train.py -c configs/a_custom.yml --use-amp --seed=0 -t a",
        "export": "python tools/deployment/export_onnx.py -r a --check",
    }
    own = commands(entry())
    assert own["export"].split()[3] == "output/a_coco/best.pth"
    assert "fine-tune" not in own


@pytest.mark.parametrize("name", TABLE)
def test_the_output_folder_in_a_command_is_that_of_the_configuration(name):
    row = TABLE[name]
    if row.source is None:
        folder = YAMLConfig(ROOT / row.config).yaml_cfg["output_dir"]
        words = shlex.split(commands(row)["evaluate"])
        assert words[-1] == f"{folder.removeprefix('./')}/best.pth"


def test_unknown_values_are_dashes():
    assert short_list([entry()]).splitlines()[1].split() == [
        "a",
        "DEIM-S",
        "-",
        "-",
        "-",
        "-",
    ]


def test_a_model_has_a_row_for_each_of_its_input_sizes():
    other = {"input": 768, "gflops": 209.5, "cost": 1.9}
    row = entry(
        input=640,
        gflops=125.3,
        cost=1.16,
        other_inputs=[InputSize(**other)],
        ap=50.0,
        ap_source="D",
    )
    first, second = table_of_models([row]).splitlines()[2:]
    assert "| 640 |" in first and "| 125.3 | 1.16 | 50.0 | D |" in first
    assert "| 768 |" in second and "| 209.5 | 1.90 | - | - |" in second
    assert "`-u 'eval_spatial_size=[768, 768]'`" in second
    text = description(row)
    assert "768 x 768 pixels (209.5 GFLOPs, CPU cost 1.90)" in text


@pytest.mark.parametrize("name", TABLE)
def test_other_input_sizes_can_be_trained_and_cost_what_they_should(name):
    row = TABLE[name]
    for size in row.other_inputs:
        assert size.input % 32 == 0 and size.input != row.input
        assert (size.input > row.input) == (size.gflops > row.gflops)
        assert (size.input > row.input) == (size.cost > row.cost)


def test_a_description_names_where_the_file_comes_from_and_goes():
    text = description(
        entry(source="https://a.b/c", files=["x.pth"], ap=49.0, ap_source="D")
    )
    assert "COCO AP:        49.0 (D)" in text
    assert "file:           weights/x.pth" in text
    assert "from:           https://a.b/c" in text
    assert "no weights are published" in description(entry())


def test_who_installed_the_package_gets_commands_of_dfine(monkeypatch):
    monkeypatch.setattr(model_page, "is_installed", lambda: True)
    texts = commands(TABLE["deim_s_coco"])
    assert texts == {
        "evaluate": "dfine val deim_s_coco --data DATA",
        "fine-tune": "dfine train --data DATA --model deim_s_coco",
        "export": "dfine export deim_s_coco --check",
    }
