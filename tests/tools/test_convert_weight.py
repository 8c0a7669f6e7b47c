"""Conversion of checkpoints to this project's form and to folders for transformers."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from src.core import YAMLConfig
from src.detection.fitting import load_strictly
from src.detection.model_config import model_config
from src.detection.weight_file import read_weights
from src.inference import Detector
from tests.fixtures.run_here import run_here
from tests.fixtures.small_dfine import SMALL, filled
from tests.fixtures.tiny import ROOT
from tests.fixtures.trained_tiny import TRAINED
from tests.golden import filler

TOOL = "reference/convert_weight.py"
NAMES = ["cat", "dog", "Bär", "汽车", "cup"]


def write_checkpoint(path, **overrides):
    """Write a best.pth of a small D-FINE-N and return its model."""
    config, model = filled("n", **{**SMALL, **overrides})
    classes = [{"id": 10 + i, "name": name} for i, name in enumerate(NAMES)]
    notes = {"classes": classes, "config": config.to_yaml()}
    torch.save({"model": model.state_dict(), "meta": notes}, path)
    return model


def transformers():
    return pytest.importorskip(
        "transformers",
        reason="transformers is not installed (tools/requirements.txt)",
    )


def test_transformers_detects_the_same_objects_with_the_folder(tmp_path):
    library = transformers()
    write_checkpoint(tmp_path / "best.pth")
    ended = run_here(TOOL, tmp_path / "best.pth", "--to", "transformers")
    assert ended.code == 0, ended.err
    folder = tmp_path / "best_transformers"
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
    }
    theirs = library.DFineForObjectDetection.from_pretrained(folder).eval()
    assert theirs.config.id2label == dict(enumerate(NAMES))
    processor = library.AutoImageProcessor.from_pretrained(folder)

    # at the size of the input, so that no resampling differs
    pixels = np.random.default_rng(3).integers(0, 256, (640, 640, 3))
    picture = Image.fromarray(pixels.astype(np.uint8))
    detector = Detector.from_checkpoint(tmp_path / "best.pth", device="cpu")
    ours = detector.predict([picture], threshold=0.0)[0]
    with torch.no_grad():
        outputs = theirs(**processor(picture, return_tensors="pt"))
    found = processor.post_process_object_detection(
        outputs, threshold=0.0, target_sizes=[(640, 640)]
    )[0]
    count = 20
    assert np.allclose(ours.scores[:count], found["scores"][:count], atol=1e-5)
    assert np.allclose(ours.boxes[:count], found["boxes"][:count], atol=1e-2)
    names = [theirs.config.id2label[int(i)] for i in found["labels"][:count]]
    assert names == [NAMES[label] for label in ours.labels[:count]]


def test_images_of_other_sizes_are_prepared_alike(tmp_path):
    library = transformers()
    write_checkpoint(tmp_path / "best.pth")
    run_here(TOOL, tmp_path / "best.pth", "--to", "transformers")
    processor = library.AutoImageProcessor.from_pretrained(
        tmp_path / "best_transformers"
    )
    pixels = np.random.default_rng(3).integers(0, 256, (90, 130, 3))
    picture = Image.fromarray(pixels.astype(np.uint8))
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    detector = Detector.from_checkpoint(tmp_path / "best.pth", device="cpu")
    image = torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1)
    ours, _ = detector.preprocessing([image])
    assert theirs.shape == ours.shape == (1, 3, 640, 640)
    assert (theirs - ours).abs().max() < 1.01 / 255  # they round to integers


def test_the_folder_needs_no_package_and_comes_back_bit_by_bit(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "transformers", None)
    model = write_checkpoint(tmp_path / "best.pth")
    run_here(TOOL, tmp_path / "best.pth", "--to", "transformers")
    back = read_weights(tmp_path / "best_transformers/model.safetensors")
    own = model.state_dict()
    assert len(back.weights) > 500
    assert all(torch.equal(back.weights[key], own[key]) for key in back.weights)
    assert [entry["name"] for entry in back.named_classes] == NAMES


def test_a_folder_that_is_not_empty_is_not_replaced(tmp_path):
    write_checkpoint(tmp_path / "best.pth")
    (tmp_path / "best_transformers").mkdir()
    (tmp_path / "best_transformers/notes.txt").write_text("mine")
    ended = run_here(TOOL, tmp_path / "best.pth", "--to", "transformers")
    assert ended.code == 2 and "exists and would be replaced" in ended.err
    assert (tmp_path / "best_transformers/notes.txt").read_text() == "mine"


def test_an_average_is_what_the_folder_contains(tmp_path):
    model = write_checkpoint(tmp_path / "best.pth")
    content = torch.load(tmp_path / "best.pth", weights_only=True)
    average = {key: value.clone() for key, value in model.state_dict().items()}
    average["decoder.enc_score_head.bias"] += 1
    torch.save({**content, "ema": {"module": average}}, tmp_path / "last.pth")
    ended = run_here(TOOL, tmp_path / "last.pth", "--to", "transformers")
    assert ended.code == 0, ended.err
    back = read_weights(tmp_path / "last_transformers/model.safetensors")
    assert torch.equal(
        back.weights["decoder.enc_score_head.bias"],
        average["decoder.enc_score_head.bias"],
    )


@pytest.mark.parametrize(
    "decoder", [{"mlp_act": "silu"}, {"activation": "silu"}]
)
def test_a_decoder_with_silu_is_refused_in_one_sentence(tmp_path, decoder):
    decoder = {**SMALL["DFINETransformer"], **decoder}
    write_checkpoint(tmp_path / "best.pth", DFINETransformer=decoder)
    ended = run_here(TOOL, tmp_path / "best.pth", "--to", "transformers")
    assert ended.code == 4 and ended.err.count("\n") == 1
    assert "this model has 'silu'" in ended.err
    assert not (tmp_path / "best_transformers").exists()


def test_another_architecture_is_refused_in_one_sentence(tmp_path):
    shutil.copy(TRAINED, tmp_path / "best.pth")
    ended = run_here(TOOL, tmp_path / "best.pth", "--to", "transformers")
    assert ended.code == 4 and ended.err.count("\n") == 1
    assert "it has HGNetv2 as backbone, not 'DINOv3Backbone'" in ended.err
    assert not (tmp_path / "best_transformers").exists()


def test_a_folder_of_transformers_becomes_a_checkpoint_of_ours(tmp_path):
    model = write_checkpoint(tmp_path / "best.pth")
    run_here(TOOL, tmp_path / "best.pth", "--to", "transformers")
    file = tmp_path / "best_transformers/model.safetensors"
    again = run_here(TOOL, file, "--to", "transformers")
    assert again.code == 4 and "already in the layout of" in again.err
    ended = run_here(TOOL, file)
    assert ended.code == 0, ended.err
    result = file.with_name("model_converted.pth")
    content = torch.load(result, weights_only=True)
    assert torch.equal(
        content["model"]["decoder.decoder.layers.1.self_attn.in_proj_weight"],
        model.state_dict()["decoder.decoder.layers.1.self_attn.in_proj_weight"],
    )
    once_more = run_here(TOOL, result)
    assert once_more.code == 4
    assert "already in the form of this project" in once_more.err


def test_names_that_transformers_invents_are_not_used(tmp_path):
    write_checkpoint(tmp_path / "best.pth")
    run_here(TOOL, tmp_path / "best.pth", "--to", "transformers")
    file = tmp_path / "best_transformers/config.json"
    content = json.loads(file.read_text())
    content["id2label"] = {str(i): f"LABEL_{i}" for i in range(5)}
    file.write_text(json.dumps(content))
    read = read_weights(file.with_name("model.safetensors"))
    assert read.named_classes[0] == {"id": 0, "name": "class 0"}
    file.write_text("{")
    ended = run_here(TOOL, file.with_name("model.safetensors"))
    assert ended.code == 4 and "config.json is not a JSON file" in ended.err


def published(tmp_path, name, config, *, as_average=True):
    """Write a file as it is published, without notes, and return its path and the weights."""
    cfg = YAMLConfig(ROOT / config, HGNetv2={"pretrained": False})
    state = filler.fill(cfg.model).state_dict()
    content = {"ema": {"module": state}} if as_average else {"model": state}
    torch.save(content, tmp_path / name)
    return tmp_path / name, state


def test_a_published_file_gets_its_configuration_and_the_names_of_classes(
    tmp_path,
):
    file, state = published(
        tmp_path,
        "deim_dfine_hgnetv2_n_coco_160e.pth",
        "configs/deim/deim_hgnetv2_n_coco.yml",
    )
    ended = run_here(TOOL, file)
    assert ended.code == 0, ended.err
    result = tmp_path / "any.pth"
    file.with_stem(f"{file.stem}_converted").rename(result)
    read = read_weights(result)
    assert read.classes[0] == {"id": 1, "name": "person"}
    assert read.meta["family"] == "deim"
    cfg = model_config(read)
    assert cfg.yaml_cfg["DFINETransformer"]["mlp_act"] == "silu"
    load_strictly(cfg.model, read)
    loaded = cfg.model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_published_dfine_becomes_a_folder_with_the_names_of_coco(tmp_path):
    file, _ = published(
        tmp_path, "dfine_n_coco.pth", "configs/dfine/dfine_hgnetv2_n_coco.yml"
    )
    ended = run_here(TOOL, file, "--to", "transformers")
    assert ended.code == 0, ended.err
    config = json.loads(
        (tmp_path / "dfine_n_coco_transformers/config.json").read_text()
    )
    assert config["id2label"]["0"] == "person" and len(config["id2label"]) == 80
    again = run_here(
        TOOL, tmp_path / "dfine_n_coco_transformers/model.safetensors"
    )
    assert again.code == 0, again.err
    result = read_weights(
        tmp_path / "dfine_n_coco_transformers/model_converted.pth"
    )
    assert result.classes[-1] == {"id": 90, "name": "toothbrush"}
    load_strictly(model_config(result).model, result)


def test_a_file_of_deim_is_refused_for_transformers(tmp_path):
    file, _ = published(
        tmp_path, "deim_n.pth", "configs/deim/deim_hgnetv2_n_coco.yml"
    )
    ended = run_here(TOOL, file, "--to", "transformers")
    assert ended.code == 4
    assert "DFINETransformer.activation=relu only" in ended.err


def test_a_file_of_deimv2_becomes_a_checkpoint_of_ours_but_no_folder(tmp_path):
    file, state = published(
        tmp_path,
        "deimv2_atto.pth",
        "configs/deimv2/deimv2_hgnetv2_atto_coco.yml",
    )
    ended = run_here(TOOL, file, "--to", "transformers")
    assert ended.code == 4 and "not 'LiteEncoder'" in ended.err
    ended = run_here(TOOL, file)
    assert ended.code == 0, ended.err
    result = read_weights(tmp_path / "deimv2_atto_converted.pth")
    assert result.meta["family"] == "deimv2"
    load_strictly(model_config(result).model, result)


def test_notes_are_added_to_a_file_that_only_lacks_them(tmp_path):
    file, _ = published(
        tmp_path,
        "deim_n.pth",
        "configs/deim/deim_hgnetv2_n_coco.yml",
        as_average=False,
    )
    assert run_here(TOOL, file).code == 0
    result = tmp_path / "deim_n_converted.pth"
    assert read_weights(result).meta["family"] == "deim"
    assert run_here(TOOL, result).code == 4


def test_the_family_can_be_named(tmp_path):
    file, _ = published(
        tmp_path, "weights.pth", "configs/deim/deim_hgnetv2_n_coco.yml"
    )
    ended = run_here(TOOL, file, "--family", "deim")
    assert ended.code == 0, ended.err
    assert read_weights(tmp_path / "weights_converted.pth").meta["family"] == (
        "deim"
    )
