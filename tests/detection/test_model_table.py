"""The table of models: its entries, and the files that are found by a model's name."""

import hashlib

import msgspec
import pytest

from src.cli.common import FAMILIES
from src.core import YAMLConfig
from src.core.errors import CheckpointError
from src.detection import model_table
from src.detection.model_table import (
    ROOT,
    TITLES,
    find_weights,
    is_model_name,
    read_table,
    title_of,
    titles_of,
)
from src.detection.weight_file import read_weights
from tests.fixtures.published import write_published


@pytest.mark.parametrize("entry", read_table().values(), ids=read_table())
def test_an_entry_has_a_family_and_configurations_that_exist(entry):
    assert entry.family in TITLES
    assert (ROOT / entry.config).is_file()
    assert entry.custom_config is None or (ROOT / entry.custom_config).is_file()


def test_the_commands_accept_the_families_of_the_table():
    assert tuple(TITLES) == FAMILIES


def test_titles_are_spelled_as_the_authors_do():
    assert title_of("deimv2_pico") == "DEIMv2-Pico"
    assert titles_of("dfine_n") == "D-FINE-N or DEIM-N"


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("dfine_dinov3_s_coco", "relu"),
        ("dfine_dinov3_x_coco", "relu"),
        ("dfine_dinov3_s2_coco", "silu"),
        ("dfine_dinov3_s2_windows_coco", "silu"),
        ("dfine_dinov3_t_coco", "silu"),
    ],
)
def test_the_second_generation_has_silu_in_the_decoder(name, activation):
    entry = read_table()[name]
    settings = YAMLConfig(ROOT / entry.config).yaml_cfg["DFINETransformer"]
    assert entry.activation == settings.get("activation", "relu") == activation


def test_a_file_is_found_under_its_published_name_or_that_of_the_model(
    tmp_path,
):
    entry = read_table()["deim_n_coco"]
    (tmp_path / "deim_n_coco.safetensors").touch()
    found = find_weights("deim_n_coco", tmp_path)
    assert found.name == "deim_n_coco.safetensors"
    (tmp_path / entry.files[0]).touch()
    assert find_weights("deim_n_coco", tmp_path).name == entry.files[0]


def test_a_missing_file_is_named_with_its_source_and_place(tmp_path):
    entry = read_table()["dfine_l_coco"]
    with pytest.raises(CheckpointError) as caught:
        find_weights("dfine_l_coco", tmp_path)
    text = str(caught.value)
    assert str(tmp_path / entry.files[0]) in text
    assert entry.source in text and "put it there" in text


def test_a_model_without_published_weights_has_to_be_trained(tmp_path):
    with pytest.raises(CheckpointError, match="no published weights.*train"):
        find_weights("dfine_dinov3_s_coco", tmp_path)


def test_a_published_digest_is_compared(tmp_path, monkeypatch):
    path = tmp_path / "deim_n_coco.pth"
    path.write_bytes(b"weights")
    table = read_table()
    for digest, fits in (
        (hashlib.sha256(b"weights").hexdigest(), True),
        ("0" * 64, False),
    ):
        entry = msgspec.structs.replace(table["deim_n_coco"], sha256=digest)
        changed = {**table, "deim_n_coco": entry}
        monkeypatch.setattr(
            model_table, "read_table", lambda changed=changed: changed
        )
        if fits:
            assert find_weights("deim_n_coco", tmp_path) == path
        else:
            with pytest.raises(CheckpointError, match="damaged or another"):
                find_weights("deim_n_coco", tmp_path)


def test_a_path_is_not_the_name_of_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_model_name("dfine_l_coco") and is_model_name("dfine_l_cocoo")
    assert not is_model_name("dfine_l_coco.pth")
    assert not is_model_name("weights/dfine_l_coco")
    assert not is_model_name("last")
    (tmp_path / "dfine_l_coco").touch()
    assert not is_model_name("dfine_l_coco")


def test_a_similar_name_is_suggested():
    with pytest.raises(CheckpointError, match="did you mean dfine_l_coco"):
        read_weights("dfine_l_cocoo")


def test_weights_are_read_by_the_name_of_their_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "weights"
    folder.mkdir()
    write_published(folder, "deimv2_atto", "deimv2_atto_coco.pth")
    file = read_weights("deimv2_atto_coco")
    assert file.recognized.entry.name == "deimv2_atto_coco"
    (folder / "deimv2_atto_coco.pth").rename(folder / "deimv2_pico_coco.pth")
    with pytest.raises(
        CheckpointError, match="holds DEIMv2-Atto, not deimv2_pico_coco"
    ):
        _ = read_weights("deimv2_pico_coco").recognized
