"""The model of a file is decided by its tensors, its notes, --family or its name."""

import pytest

from src.core.errors import CheckpointError
from tests.fixtures.published_states import file_of, state_without_data


def found(name: str, file: str = "model.pth", classes: int = 80, **options):
    return file_of(
        state_without_data(name, classes), file, **options
    ).recognized


@pytest.mark.parametrize("size", ["s", "m", "l", "x"])
def test_deimv2_is_known_by_its_tensors(size):
    recognized = found(f"deimv2_{size}")
    assert recognized.entry.name == f"deimv2_{size}_coco"
    assert recognized.decided_by == "its tensors"
    assert recognized.warning is None


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("deim_dfine_hgnetv2_s_coco_120e.pth", "deim_s_coco"),
        ("DEIM-S.safetensors", "deim_s_coco"),
        ("rtv4_hgnetv2_s_coco.pth", "rtv4_s_coco"),
        ("RT-DETRv4-S.pth", "rtv4_s_coco"),
        ("dfine_s_coco.pth", "dfine_s_coco"),
        ("dfine_s_obj2coco.pth", "dfine_s_obj2coco"),
        ("demimonde.pth", "dfine_s_coco"),
    ],
)
def test_the_name_decides_between_families_with_the_same_tensors(file, model):
    recognized = found("dfine_s", file)
    assert recognized.entry.name == model
    assert "in the decoder" in recognized.warning


def test_nothing_decides_about_a_file_without_a_telling_name():
    recognized = found("dfine_s")
    assert recognized.entry.name == "dfine_s_coco" and recognized.is_undecided
    assert "used as D-FINE-S with ReLU" in recognized.warning
    assert "--family chooses (dfine, deim, rtv4)" in recognized.warning


def test_the_family_of_the_user_decides_about_such_a_file():
    recognized = found("dfine_s", family="deim")
    assert recognized.entry.name == "deim_s_coco"
    assert "SiLU in the decoder, as --family says" in recognized.warning


def test_notes_decide_before_the_name():
    noted = file_of(state_without_data("dfine_s"), "deim_s.pth")
    noted.meta["family"] = "dfine"
    assert noted.recognized.entry.family == "dfine"
    assert noted.recognized.decided_by == "its notes"


def test_batch_counts_show_that_a_large_model_is_not_dfine():
    recognized = found("deim_l", "dfine_l.pth")
    assert recognized.entry.name == "deim_l_coco"
    assert recognized.warning is None  # RT-DETRv4 gives the same boxes
    assert found("dfine_l", "deim_l.pth").entry.name == "dfine_l_coco"


def test_the_projector_shows_rtdetrv4():
    recognized = found("rtv4_m", "dfine_m.pth")
    assert recognized.entry.name == "rtv4_m_coco"
    assert recognized.decided_by == "its tensors"


def test_deim_x_from_objects365_is_like_dfine():
    recognized = found("dfine_x", "deim_dfine_hgnetv2_x_obj2coco_24e.pth")
    assert recognized.entry.name == "deim_x_obj2coco"
    assert recognized.entry.activation == "relu" and recognized.warning is None


def test_the_number_of_classes_shows_objects365():
    assert found("dfine_s", classes=366).entry.name == "dfine_s_obj365"
    assert found("dfine_s", classes=3).entry.name == "dfine_s_coco"


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("deim_l", "model.pth", "tensors of DEIM-L or RT-DETRv4-L, which con"),
        ("deimv2_s", "model.pth", "tensors of DEIMv2-S, which contradicts"),
        ("deim_s", "deim_s.pth", "is DEIM according to its name, .* rename"),
        ("rtv4_s", "model.pth", "tensors of RT-DETRv4-S, which contradicts"),
    ],
)
def test_a_family_that_contradicts_the_file_is_refused(name, file, message):
    with pytest.raises(CheckpointError, match=message):
        found(name, file, family="dfine")


def test_a_family_that_contradicts_the_notes_is_refused():
    file = file_of(state_without_data("dfine_s"), family="deim")
    file.meta["family"] = "dfine"
    with pytest.raises(CheckpointError, match="says in its notes that it is D"):
        _ = file.recognized


def test_the_configuration_in_a_file_is_one_of_its_notes():
    silu = "model: DFINE\nDFINE: {decoder: D}\nD: {activation: silu}\n"
    recognized = file_of(
        state_without_data("dfine_s"), "dfine.pth", config=silu
    ).recognized
    assert recognized.entry.family == "deim"
