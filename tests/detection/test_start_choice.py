"""A training starts from the best weights that are available for its model."""

import pytest

from src.core import CheckpointError, ConfigError
from src.core.package_configs import package_config
from src.detection.start_choice import choose_start

S = package_config("configs/dfine/custom/dfine_dinov3_s_custom.yml")
DINOV3 = "dinov3_vits16_pretrain_lvd1689m-08c60483.pth"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder weights/ in the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def test_the_default_is_size_s_from_dinov3(folder):
    (folder / DINOV3).write_bytes(b"weights")
    start = choose_start()
    assert (start.config, start.weights) == (S, None)
    assert start.reason == (
        f"the training starts from DINOv3 (weights/{DINOV3}), with dfine_dinov3_s_custom: no detector that "
        "fits is in weights/"
    )


def test_a_detector_comes_before_the_backbone(folder):
    (folder / DINOV3).write_bytes(b"weights")
    (folder / "dfine_s_obj2coco.pth").write_bytes(b"weights")
    (folder / "dfine_s_coco.pth").write_bytes(b"weights")
    start = choose_start("s")
    assert start.weights == "dfine_s_obj2coco"
    assert start.config.stem == "dfine_hgnetv2_s_obj2custom"
    assert "starts from D-FINE-S (dfine_s_obj2coco)" in start.reason


def test_dinov3_detectors_come_first(folder):
    for name in ("dfine_s_coco", "deimv2_s_coco", "dfine_dinov3_s_coco"):
        (folder / f"{name}.pth").write_bytes(b"weights")
    assert choose_start().weights == "dfine_dinov3_s_coco"
    assert choose_start().config == S


def test_detectors_of_other_sizes_are_not_used(folder):
    (folder / "dfine_l_coco.pth").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="^nothing to start from"):
        choose_start()


def test_with_nothing_to_start_from_both_files_and_a_way_out_are_named(folder):
    with pytest.raises(CheckpointError) as error:
        choose_start()
    for part in (
        "dfine_dinov3_s_coco",
        DINOV3,
        "--model dfine_hgnetv2_n_scratch",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("tiny", "dfine_dinov3_tiny_scratch"),
        ("scratch", "dfine_hgnetv2_n_scratch"),
        ("dfine_dinov3_tiny_scratch", "dfine_dinov3_tiny_scratch"),
        (
            "configs/dfine/custom/dfine_hgnetv2_n_scratch.yml",
            "dfine_hgnetv2_n_scratch",
        ),
    ],
)
def test_models_from_scratch_need_no_weights(folder, model, config):
    start = choose_start(model)
    assert (start.config.stem, start.weights) == (config, None)
    assert "random weights" in start.reason


def test_size_n_starts_from_imagenet(folder):
    start = choose_start("n")
    assert start.config.stem == "dfine_hgnetv2_n_custom"
    assert "ImageNet weights of HGNetv2" in start.reason


def test_a_model_for_fine_tuning_alone_needs_its_detector(folder):
    with pytest.raises(
        CheckpointError,
        match="does not contain a detector that fits .deimv2_s_coco.",
    ):
        choose_start("deimv2_s_coco")
    (folder / "deimv2_dinov3_s_coco.pth").write_bytes(b"weights")
    assert choose_start("deimv2_s_coco").weights == "deimv2_s_coco"


def test_a_configuration_starts_from_the_detectors_that_name_it(folder):
    (folder / "dfine_m_coco.pth").write_bytes(b"weights")
    start = choose_start("dfine_hgnetv2_m_custom")
    assert (start.config.stem, start.weights) == (
        "dfine_hgnetv2_m_custom",
        "dfine_m_coco",
    )


def test_a_run_folder_starts_from_its_best_checkpoint(folder, tmp_path):
    run = tmp_path / "runs/mine"
    run.mkdir(parents=True)
    (run / "last.pth").write_bytes(b"weights")
    assert choose_start("runs/mine").weights == "runs/mine/last.pth"
    (run / "best.pth").write_bytes(b"weights")
    start = choose_start("runs/mine")
    assert (start.config, start.weights) == (None, "runs/mine/best.pth")


def test_a_folder_without_a_checkpoint_is_refused(folder, tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(
        CheckpointError, match="^runs contains neither best.pth nor last.pth"
    ):
        choose_start("runs")


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("dfine_l_cocoo", "did you mean dfine_l_coco"),
        ("giant", "`dfine models` lists the models"),
    ],
)
def test_an_unknown_model_is_refused_with_a_hint(folder, model, hint):
    with pytest.raises(
        ConfigError, match=f"^--model {model} is not known; {hint}"
    ):
        choose_start(model)


@pytest.mark.parametrize(
    ("size", "file"), [("s2", DINOV3), ("t", "vitt_distill.pt")]
)
def test_the_second_generation_is_a_size_of_its_own(folder, size, file):
    (folder / file).write_bytes(b"weights")
    start = choose_start(size)
    assert start.config.stem == f"dfine_dinov3_{size}_custom"
    assert start.weights is None and file in start.reason
    (folder / f"dfine_dinov3_{size}_coco.pth").write_bytes(b"weights")
    assert choose_start(size).weights == f"dfine_dinov3_{size}_coco"


def test_a_model_with_windows_is_started_by_its_name_alone(folder):
    (folder / DINOV3).write_bytes(b"weights")
    start = choose_start("dfine_dinov3_s2_windows_coco")
    assert start.config.stem == "dfine_dinov3_s2_windows_coco"
