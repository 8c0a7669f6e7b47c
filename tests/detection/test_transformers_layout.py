"""Weights in the layout of the package transformers, compared with that package's own model."""

import json

import pytest
import torch
from safetensors.torch import save_file

from src.core.coco_categories import COCO_NAMES
from src.core.errors import CheckpointError, ConfigError
from src.detection.fitting import load_strictly
from src.detection.model_config import model_config
from src.detection.transformers_folder import (
    check_new_folder,
    classes_beside,
    preprocessor_config,
    write_folder,
)
from src.detection.transformers_layout import (
    from_transformers,
    is_transformers_layout,
    to_transformers,
)
from src.detection.weight_file import read_weights
from src.runtime.finite import COMPUTED_KEYS
from src.runtime.weight_files import read_tensor_file
from tests.fixtures.golden import coco_config
from tests.fixtures.slow import slow
from tests.fixtures.small_dfine import SMALL, filled
from tests.golden import filler

SIDE = 256
"""Side of the images, in pixels."""

TOLERANCE = 1e-5


def written(folder, config, model):
    """Write the folder of a model for transformers."""
    weights, entries = to_transformers(model.state_dict(), config.yaml_cfg)
    names = [f"class {i}" for i in range(config.yaml_cfg["num_classes"])]
    preprocessor = preprocessor_config(config.evaluation_transforms, "a model")
    write_folder(folder, weights, entries, names, preprocessor)
    return folder


def loaded(folder):
    """Return transformers' model of a folder, after checking that nothing is missing or left over."""
    transformers = pytest.importorskip(
        "transformers",
        reason="transformers is not installed (tools/requirements.txt)",
    )
    model, info = transformers.DFineForObjectDetection.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


@torch.no_grad()
def distances(ours, theirs, *, height=SIDE, width=SIDE):
    """Return the distance of each of their queries to the nearest of ours, largest first.

    Two queries with nearly equal scores can change places, and the last one can be another.
    """
    images = filler.image(7, 1, 3, height, width)
    mine = ours(images)
    other = theirs(pixel_values=images)
    a = torch.cat([mine["pred_logits"], mine["pred_boxes"]], 2)[0]
    b = torch.cat([other.logits, other.pred_boxes], 2)[0]
    assert a.shape == b.shape
    apart = (a[None] - b[:, None]).abs().amax(2)  # [theirs, ours]
    return apart.amin(1).sort(descending=True).values


def assert_equal_outputs(ours, theirs, **size):
    apart = distances(ours, theirs, **size)
    assert apart[1] < TOLERANCE, apart[:5]


def assert_equal_tensors(ours, theirs):
    """Compare all tensors bit by bit, except for the tables that transformers computes."""
    assert set(ours) - set(theirs) == set(COMPUTED_KEYS)
    for key, value in theirs.items():
        assert value.dtype == ours[key].dtype, key
        assert torch.equal(value, ours[key]), key


@pytest.mark.parametrize(
    "size",
    ["n", "s", *slow("m", "l", "x")],
)
def test_transformers_gives_the_same_boxes_in_both_directions(tmp_path, size):
    config, model = filled(size)
    theirs = loaded(written(tmp_path / "folder", config, model))
    assert_equal_outputs(model, theirs)

    # their weights, in memory and in a file, in a model of ours with other weights
    filler.fill(theirs, salt=5)
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path / "other")
    file = read_tensor_file(tmp_path / "other/model.safetensors")
    back, _ = from_transformers(file, "a file")
    from_memory, remarks = from_transformers(theirs.state_dict(), "a model")
    assert all(torch.equal(from_memory[key], back[key]) for key in back)
    assert "repeat the heads of the decoder" in remarks[0]
    missing, unexpected = model.load_state_dict(back, strict=False)
    assert set(missing) == set(COMPUTED_KEYS) and not unexpected
    assert_equal_outputs(model, theirs)


@pytest.mark.slow
def test_the_outputs_are_equal_at_the_full_input_size(tmp_path):
    config, model = filled("s")
    theirs = loaded(written(tmp_path / "folder", config, model))
    assert_equal_outputs(model, theirs, height=640, width=640)


def test_widths_points_heads_and_classes_follow_the_weights(tmp_path):
    config, model = filled("n", **SMALL)
    theirs = loaded(written(tmp_path / "folder", config, model))
    assert theirs.config.num_labels == 5
    assert theirs.config.decoder_n_points == [3, 5]
    assert theirs.config.decoder_attention_heads == 2
    assert_equal_outputs(model, theirs)


def test_settings_that_tensors_do_not_show_come_from_the_configuration(
    tmp_path,
):
    decoder = {**SMALL["DFINETransformer"], "cross_attn_method": "discrete"}
    config, model = filled("n", **{**SMALL, "DFINETransformer": decoder})
    theirs = loaded(written(tmp_path / "folder", config, model))
    assert theirs.config.num_queries == 50
    assert theirs.config.encoder_attention_heads == 4
    assert_equal_outputs(model, theirs)


@pytest.mark.parametrize("size", ["n", "s", *slow("m", "l", "x")])
def test_a_round_trip_gives_the_same_bits(size):
    config, model = filled(size)
    state = model.state_dict()
    there, _ = to_transformers(state, config.yaml_cfg)
    assert is_transformers_layout(there) and not is_transformers_layout(state)
    back, remarks = from_transformers(there, "a file")
    assert_equal_tensors(state, back)
    assert remarks == []


def test_heads_outside_the_decoder_are_used_if_the_decoder_has_none():
    config, model = filled("n", **SMALL)
    there, _ = to_transformers(model.state_dict(), config.yaml_cfg)
    outside = {}
    for key, value in there.items():
        if "class_embed." in key or "bbox_embed." in key:
            key = key.removeprefix("model.decoder.")
        outside[key] = value
    assert "class_embed.0.weight" in outside
    back, remarks = from_transformers(outside, "a file")
    assert_equal_tensors(model.state_dict(), back)
    assert remarks == []


def test_tensors_share_no_memory_and_can_be_written(tmp_path):
    config, model = filled("n", **SMALL)
    there, _ = to_transformers(model.state_dict(), config.yaml_cfg)
    places = [value.data_ptr() for value in there.values() if value.numel()]
    assert len(set(places)) == len(places)
    assert all(value.is_contiguous() for value in there.values())


def test_foreign_tensors_are_named():
    config, model = filled("n", **SMALL)
    there, _ = to_transformers(model.state_dict(), config.yaml_cfg)
    there["model.decoder.mask_head.weight"] = torch.zeros(1)
    with pytest.raises(
        CheckpointError,
        match=r"x\.bin has 1 tensor .*\(model\.decoder\.mask_head\.weight\)",
    ):
        from_transformers(there, "x.bin")


def test_a_missing_projection_is_named():
    config, model = filled("n", **SMALL)
    there, _ = to_transformers(model.state_dict(), config.yaml_cfg)
    del there["model.decoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(
        CheckpointError,
        match=r"incomplete: decoder\.decoder\.layers\.1\.self_attn has no k_proj\.bias",
    ):
        from_transformers(there, "x.bin")


@pytest.mark.parametrize(
    "part, setting, value, message",
    [
        ("DFINETransformer", "mlp_act", "silu", "mlp_act=relu only"),
        ("DFINETransformer", "activation", "silu", "activation=relu only"),
        ("DFINETransformer", "eval_idx", 0, "eval_idx=0 of 2 layers"),
        ("DFINETransformer", "layer_scale", 2, "layer_scale=1 only"),
        (
            "DFINETransformer",
            "query_select_method",
            "one2many",
            "query_select_method=default only",
        ),
        ("HybridEncoder", "act", "relu", "HybridEncoder.act=silu only"),
        ("DFINE", "backbone", "DINOv3Backbone", "HGNetv2 as backbone"),
    ],
)
def test_a_model_that_transformers_does_not_have_is_refused(
    part, setting, value, message
):
    config, model = filled("n", **SMALL)
    settings = dict(config.yaml_cfg)
    settings[part] = {**settings[part], setting: value}
    with pytest.raises(CheckpointError, match=message):
        to_transformers(model.state_dict(), settings, path="last.pth")


def test_tensors_without_a_place_in_transformers_are_named():
    state = {"backbone.vit.norm.weight": torch.zeros(3)}
    with pytest.raises(
        CheckpointError, match=r"backbone\.vit\.norm\.weight.*D-FINE with HGNet"
    ):
        to_transformers(state, path="best.pth")


def test_an_incomplete_state_is_refused_with_the_missing_tensor():
    config, model = filled("n", **SMALL)
    state = model.state_dict()
    del state["decoder.enc_output.proj.weight"]
    with pytest.raises(
        CheckpointError, match=r"no tensor decoder\.enc_output\.proj\.weight"
    ):
        to_transformers(state, config.yaml_cfg)


def test_the_image_processor_follows_the_transforms_of_the_validation_data():
    ops = [
        {"type": "Resize", "size": [320, 480]},
        {"type": "ConvertPILImage", "dtype": "float32", "scale": True},
    ]
    entries = preprocessor_config(ops, "best.pth")
    assert entries["size"] == {"height": 320, "width": 480}
    assert entries["do_normalize"] is False
    normalize = {"type": "Normalize", "mean": [0.5] * 3, "std": [0.2] * 3}
    entries = preprocessor_config([*ops, normalize], "best.pth")
    assert entries["do_normalize"] is True
    assert entries["image_mean"] == [0.5] * 3
    assert entries["image_std"] == [0.2] * 3


@pytest.mark.parametrize(
    "ops, message",
    [
        ([{"type": "ConvertPILImage"}], "no Resize"),
        ([{"type": "RandomPhotometricDistort"}], "RandomPhotometricDistort"),
    ],
)
def test_transforms_without_a_counterpart_are_refused(ops, message):
    with pytest.raises(CheckpointError, match=message):
        preprocessor_config(ops, "best.pth")


def test_a_file_without_batch_counts_is_recognized_and_loaded(tmp_path):
    """transformers freezes the norms of all sizes, and frozen norms do not count batches."""
    config, model = filled("n")
    there, _ = to_transformers(model.state_dict(), config.yaml_cfg)
    kept = {}
    for key, value in there.items():
        is_count = key.endswith("num_batches_tracked")
        if not (is_count and key.startswith("model.backbone.")):
            kept[key] = value
    assert len(kept) < len(there)
    save_file(kept, tmp_path / "model.safetensors")
    read = read_weights(tmp_path / "model.safetensors")
    assert read.layout == "transformers"
    cfg = model_config(read)
    load_strictly(cfg.model, read)
    images = filler.image(7, 1, 3, SIDE, SIDE)
    with torch.no_grad():
        again = cfg.model.eval()(images)
        assert torch.equal(again["pred_boxes"], model(images)["pred_boxes"])


@pytest.mark.parametrize(
    "labels, count, expected",
    [
        (["cat", "dog"], 2, ["cat", "dog"]),
        (["cat", "dog"], 3, None),
        (["LABEL_0", "LABEL_1"], 2, None),
        (["cat", 7], 2, None),
        # other spellings of COCO's names, whose ids would be lost
        ([*COCO_NAMES[:3], "motorbike", *COCO_NAMES[4:]], 80, None),
        (
            [f"part {i}" for i in range(80)],
            80,
            [f"part {i}" for i in range(80)],
        ),
    ],
)
def test_names_of_classes_are_read_beside_the_weights(
    tmp_path, labels, count, expected
):
    names = {str(i): name for i, name in enumerate(labels)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    found = classes_beside(tmp_path / "model.safetensors", count)
    if expected is None:
        assert found is None
    else:
        assert [entry["name"] for entry in found] == expected
        assert [entry["id"] for entry in found] == list(range(count))


@pytest.mark.parametrize("content", [None, "[]", '{"id2label": []}'])
def test_without_a_configuration_beside_the_weights_there_are_no_names(
    tmp_path, content
):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert classes_beside(tmp_path / "model.safetensors", 2) is None


def test_a_folder_with_files_is_not_written_to(tmp_path):
    check_new_folder(tmp_path)
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="would be replaced"):
            check_new_folder(path)


def test_silu_beside_a_file_of_transformers_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    weights, _ = to_transformers(coco_config("n").model.state_dict())
    save_file({k: v.contiguous().clone() for k, v in weights.items()}, path)
    settings = {"decoder_activation_function": "silu"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="sets decoder_activation_functi"):
        _ = read_weights(path).recognized
