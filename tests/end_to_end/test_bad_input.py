"""Mistakes of users end with a one-line message and an exit code, never with a traceback."""

import json
import logging
import sys

import pytest

import train
from tests.fixtures.commands import write_tiny_config
from tests.fixtures.train_here import train_here


@pytest.fixture
def run_train(monkeypatch, capsys):
    """Run train.py in this process; return its exit code and what it wrote to stderr."""
    logger = logging.getLogger("dfine")
    before = logger.handlers[:], logger.propagate, logger.level

    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            train.main()
        return end.value.code, capsys.readouterr().err

    yield run
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.fixture
def changed_labels(tiny_data, tmp_path):
    """Return a function that writes a changed copy of the training labels and gives its path."""

    def write(change) -> str:
        labels = json.loads((tiny_data.folder / "train.json").read_text())
        change(labels)
        (tmp_path / "changed.json").write_text(json.dumps(labels))
        return f"train_dataloader.dataset.ann_file={tmp_path / 'changed.json'}"

    return write


CONFIG_FAULTS = {
    "an unknown key": (
        ["epoch=3"],
        "unknown key 'epoch' (command line); did you mean 'epochs'?",
    ),
    "an unknown key of a class": (
        ["HybridEncoder.hiden_dim=3"],
        "unknown key 'HybridEncoder.hiden_dim' (command line); did you mean 'hidden_dim'?",
    ),
    "a wrong type": (
        ["DFINETransformer.num_layers=three"],
        "DFINETransformer.num_layers is 'three', expected an integer",
    ),
    "channels that do not fit": (
        ["HybridEncoder.in_channels=[512, 1024, 2048]"],
        (
            "HybridEncoder.in_channels is [512, 1024, 2048] but DINOv3Backbone gives "
            "[32, 32, 32]; set in_channels to match"
        ),
    ),
    "a size that is not a multiple of 32": (
        ["eval_spatial_size=[500, 500]"],
        "500",
    ),
    "code in an override": (
        ["DFINETransformer.num_layers=!!python/object/apply:os.getcwd []"],
        "could not determine a constructor",
    ),
    "too few classes": (["num_classes=2"], "num_classes is 2, but"),
    "a batch that ranks cannot share": (
        ["train_dataloader.total_batch_size=0"],
        "total_batch_size is 0",
    ),
    "more images a batch than there are": (
        [
            "train_dataloader.total_batch_size=64",
            "train_dataloader.drop_last=True",
        ],
        "0 steps per epoch: 24 images cannot fill one batch of 64",
    ),
    "no epochs": (["epochs=0"], "epochs is 0, expected at least 1"),
    "a rate policy that torch refuses": (
        [
            "lr_scheduler={type: OneCycleLR, max_lr: 0.1, total_steps: 1.0, pct_start: 5.0}"
        ],
        "OneCycleLR cannot be built",
    ),
    "mixing in evaluation": (
        [
            "val_dataloader.collate_fn={type: BatchImageCollateFunction, mixup_prob: 0.5}"
        ],
        (
            "val_dataloader has mixup_prob, but images are evaluated as they are; "
            "only train_dataloader may mix them"
        ),
    ),
    "a mosaic in evaluation": (
        ["val_dataloader.dataset.transforms.ops=[{type: Mosaic}]"],
        "val_dataloader has Mosaic, but images are evaluated",
    ),
    "a missing image folder": (
        ["train_dataloader.dataset.img_folder=/nowhere"],
        "CocoDetection.img_folder /nowhere is not a folder",
    ),
}


@pytest.mark.parametrize(
    ("update", "text"), CONFIG_FAULTS.values(), ids=CONFIG_FAULTS
)
def test_a_fault_of_the_configuration_is_exit_code_2(
    run_train, tiny_data, tmp_path, update, text
):
    code, message = run_train(
        "-c", write_tiny_config(tmp_path, tiny_data), "-u", *update
    )
    assert text in message
    assert message.startswith("error[2]: ") and message.count("\n") == 1
    assert code == 2


def test_sizes_that_are_not_multiples_of_32_are_refused_with_the_nearest_valid_ones(
    run_train, tiny_data, tmp_path
):
    _, message = run_train(
        "-c",
        write_tiny_config(tmp_path, tiny_data),
        "-u",
        "eval_spatial_size=[500, 640]",
    )
    assert (
        "500 is not a multiple of 32; the nearest valid sizes are 480 or 512"
        in message
    )


def test_a_configuration_that_is_not_there_is_named(run_train, tmp_path):
    code, message = run_train("-c", tmp_path / "none.yml")
    assert (code, message) == (
        2,
        f"error[2]: configuration file not found: {tmp_path / 'none.yml'}\n",
    )


def test_an_unknown_category_id_names_the_annotation(
    run_train, changed_labels, tiny_data, tmp_path
):
    def change(labels):
        labels["annotations"][3]["category_id"] = 99

    code, message = run_train(
        "-c",
        write_tiny_config(tmp_path, tiny_data),
        "-u",
        changed_labels(change),
    )
    assert code == 3
    assert (
        "annotations[3] (id 4): category_id 99 is unknown; known ids: 1, 3, 7, 8"
        in message
    )


def test_a_missing_image_is_named_before_training(
    run_train, changed_labels, tiny_data, tmp_path
):
    def change(labels):
        labels["images"][5]["file_name"] = "lost.jpg"

    code, message = run_train(
        "-c",
        write_tiny_config(tmp_path, tiny_data),
        "-u",
        changed_labels(change),
    )
    assert code == 3
    assert "1 of 24 images of" in message and "lost.jpg" in message


def test_categories_that_differ_between_training_and_validation_are_listed(
    run_train, changed_labels, tiny_data, tmp_path
):
    def change(labels):
        labels["categories"][0]["name"] = "disk"

    code, message = run_train(
        "-c",
        write_tiny_config(tmp_path, tiny_data),
        "-u",
        changed_labels(change),
    )
    assert code == 3
    assert "id 1: disk / disc" in message


def test_labels_without_a_usable_box_are_refused(
    run_train, changed_labels, tiny_data, tmp_path
):
    code, message = run_train(
        "-c",
        write_tiny_config(tmp_path, tiny_data),
        "-u",
        changed_labels(lambda labels: labels.update(annotations=[])),
    )
    assert code == 3
    assert "no usable box" in message


def test_more_objects_than_queries_are_logged(tiny_data, tmp_path):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=1,
        DFINETransformer={"num_queries": 2},
        DFINEPostProcessor={"num_top_queries": 2},
    )
    ended = train_here("-c", config, "--seed=0")
    assert ended.code == 0, ended.err
    assert (
        "an image has 3 objects, but at most 2 can be detected in one image (num_queries)"
        in ended.out
    )


def test_a_missing_checkpoint_is_exit_code_4(run_train, tiny_data, tmp_path):
    code, message = run_train(
        "-c",
        write_tiny_config(tmp_path, tiny_data),
        "--test-only",
        "-r",
        tmp_path / "none.pth",
    )
    assert code == 4
    assert f"{tmp_path / 'none.pth'} does not exist" in message


def test_missing_start_weights_say_what_to_put_where_and_how_to_do_without(
    run_train, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    config = "configs/dfine/custom/dfine_dinov3_s_custom.yml"
    updates = [
        f"{part}_dataloader.dataset.{key}={value}"
        for part in ("train", "val")
        for key, value in (
            ("img_folder", tiny_data.folder / "images"),
            ("ann_file", tiny_data.folder / f"{part}.json"),
        )
    ]
    code, message = run_train(
        "-c",
        train.__file__.replace("train.py", config),
        "-u",
        *updates,
        f"output_dir={tmp_path}",
    )
    assert code == 4
    assert (
        "there is no file weights/dinov3_vits16_pretrain_lvd1689m-08c60483.pth"
        in message
        and "-u DINOv3Backbone.pretrained=False" in message
    )


def test_resuming_and_tuning_at_once_is_a_usage_error(
    run_train, tiny_data, tmp_path
):
    code, message = run_train("-c", "x.yml", "-r", "a.pth", "-t", "b.pth")
    assert (
        code == 2
        and "-r resumes a run and -t starts a new one: pass only one of them"
        in message
    )


def test_an_output_folder_that_is_a_file_is_reported_before_the_model_is_built(
    run_train, tiny_data, tmp_path
):
    (tmp_path / "file").write_text("")
    code, message = run_train(
        "-c",
        write_tiny_config(tmp_path, tiny_data),
        "--output-dir",
        tmp_path / "file",
    )
    assert (
        code == 2
        and "output_dir" in message
        and "cannot be written to" in message
    )
