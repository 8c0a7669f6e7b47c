"""Detectors are shared in a folder or on a hub, complete and without traces of the author's machine."""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.errors import CheckpointError, ConfigError, ResourceError
from src.detection.weight_file import read_weights
from src.inference import Detector
from src.inference.sharing import (
    CARD,
    CONFIG,
    DIGESTS,
    FILES,
    LICENCES,
    PREPROCESSING,
    WEIGHTS,
    pull,
    push,
    without_folders,
)
from tests.fixtures.hub_stub import local_hub
from tests.fixtures.published import write_published
from tests.fixtures.trained_tiny import TRAINED


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A shared folder of the small detector."""
    folder = tmp_path_factory.mktemp("shared") / "shapes"
    push(TRAINED, folder, licence="apache-2.0")
    return folder


@pytest.fixture
def noted(tmp_path):
    """A function that writes the small detector with other notes, and returns the file."""

    def write(**notes):
        content = torch.load(TRAINED, weights_only=True)
        content.pop("written_by", None)
        content["meta"].update(notes)
        path = tmp_path / "noted.pth"
        torch.save(content, path)
        return path

    return write


def test_a_shared_folder_has_weights_card_configuration_and_licences(shared):
    assert sorted(path.name for path in shared.iterdir()) == sorted(FILES)
    card = (shared / CARD).read_text()
    assert card.startswith("---\nlibrary_name: dfine-dinov3\n")
    assert "license: apache-2.0" in card
    assert "# shapes" in card


def test_a_shared_detector_finds_the_same(shared):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    original = Detector(TRAINED).predict(image, threshold=0.0)
    copy = Detector(shared).predict(image, threshold=0.0)
    assert len(original.scores)
    np.testing.assert_array_equal(copy.scores, original.scores)
    np.testing.assert_array_equal(copy.boxes, original.boxes)
    assert copy.names == original.names


def test_the_weights_alone_are_a_complete_checkpoint(shared, tmp_path):
    alone = tmp_path / "other_name.safetensors"
    shutil.copy(shared / WEIGHTS, alone)
    original, copy = read_weights(TRAINED), read_weights(alone)
    assert copy.named_classes == original.named_classes
    assert copy.threshold == original.threshold
    assert Detector(alone).threshold == Detector(TRAINED).threshold


def test_the_preprocessing_is_that_of_the_checkpoint(shared):
    written = json.loads((shared / PREPROCESSING).read_text())
    detector = Detector(TRAINED)
    assert written["preprocessing"] == detector.preprocessing.ops
    assert written["threshold"] == detector.threshold


def test_folders_and_commands_of_the_author_are_left_out(noted, tmp_path):
    text = read_weights(TRAINED).config_text
    changed = re.sub(
        "^output_dir: .*$", "output_dir: /home/someone/run", text, flags=re.M
    )
    assert changed != text
    file = noted(command="train.py --data /home/someone", config=changed)
    folder = tmp_path / "out"
    push(file, folder)
    for name in FILES:
        assert b"someone" not in (folder / name).read_bytes(), name
    assert "output_dir: run" in (folder / CONFIG).read_text()


def test_only_the_last_part_of_absolute_paths_is_kept():
    settings = {
        "a": ["/x/images", "C:\\data\\train.json", "~/me"],
        "b": {"c": "relu", "d": "./output/run", "e": 3},
    }
    assert without_folders(settings) == {
        "a": ["images", "train.json", "me"],
        "b": {"c": "relu", "d": "./output/run", "e": 3},
    }


def test_a_licence_that_contradicts_dinov3_is_refused(noted, tmp_path):
    file = noted(licences=["vits16 by Meta: DINOv3 License, which applies"])
    with pytest.raises(ConfigError, match="derived from Meta's DINOv3"):
        push(file, tmp_path / "out", licence="mit")
    assert not (tmp_path / "out").exists()
    push(file, tmp_path / "out")
    assert (
        "license_name: dinov3-license" in (tmp_path / "out" / CARD).read_text()
    )


def test_a_missing_licence_is_pointed_out(tmp_path, caplog, monkeypatch):
    # a command that ran before in this process may have changed it
    monkeypatch.setattr(logging.getLogger("dfine"), "propagate", True)
    push(TRAINED, tmp_path / "out")
    assert "no licence is stated" in caplog.text
    assert "license:" not in (tmp_path / "out" / CARD).read_text()


def test_the_licence_of_a_published_model_is_stated(tmp_path):
    file = write_published(tmp_path, "deimv2_atto")
    push(file, tmp_path / "out")
    card = (tmp_path / "out" / CARD).read_text()
    assert "license: apache-2.0" in card
    assert (tmp_path / "out" / LICENCES).read_text() == "Apache-2.0\n"


def test_a_folder_with_files_is_not_replaced(shared, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for share in (
        lambda: push(TRAINED, tmp_path),
        lambda: pull(shared, tmp_path),
    ):
        with pytest.raises(ConfigError, match="would be replaced"):
            share()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_pull_copies_a_shared_folder_and_nothing_else(shared, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(shared, source)
    (source / "setup.py").write_text("raise SystemExit")
    folder = pull(source, tmp_path / "fetched")
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_a_changed_file_is_noticed_by_its_digest(shared, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(shared, source)
    text = (source / CONFIG).read_text()
    (source / CONFIG).write_text(text.replace("num_classes", "num_klasses"))
    with pytest.raises(
        CheckpointError, match="config.yml does not have the digest"
    ):
        pull(source, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_missing_file_is_named(shared, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(shared, source)
    (source / PREPROCESSING).unlink()
    with pytest.raises(CheckpointError, match="preprocessing.json is missing"):
        pull(source, tmp_path / "fetched")


def test_a_digest_list_cannot_point_outside_the_folder(shared, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(shared, source)
    (tmp_path / "secret").write_text("x")
    with (source / DIGESTS).open("a") as file:
        file.write(f"{'0' * 64}  ../secret\n")
    assert (pull(source, tmp_path / "fetched") / WEIGHTS).is_file()


def test_a_folder_without_weights_says_what_it_has(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / CARD).write_text("a card")
    with pytest.raises(CheckpointError, match="found: README.md"):
        pull(source, tmp_path / "fetched")


def test_a_damaged_file_is_named_by_its_source(shared, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(shared, source)
    (source / DIGESTS).write_bytes(b"\x80 not text")
    (source / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(CheckpointError) as caught:
        pull(source, tmp_path / "fetched")
    assert str(caught.value).startswith(f"{source / WEIGHTS} (7 bytes)")


@pytest.mark.parametrize("command", [push, pull])
def test_an_empty_folder_is_filled(command, shared, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    command(TRAINED if command is push else shared, ".")
    assert here.stat().st_ino == inode
    assert sorted(path.name for path in here.iterdir()) == sorted(FILES)
    if command is push:
        assert "# here\n" in (here / CARD).read_text()


def test_a_link_to_an_empty_folder_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    push(TRAINED, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / WEIGHTS).is_file()


def test_the_current_folder_can_be_fetched(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(shared)
    pull(".", tmp_path / "fetched")
    assert (tmp_path / "fetched" / WEIGHTS).is_file()


def test_a_failure_leaves_an_empty_folder_empty(shared, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    source = tmp_path / "source"
    shutil.copytree(shared, source)
    (source / CONFIG).write_text("changed")
    with pytest.raises(CheckpointError, match="does not have the digest"):
        pull(source, target)
    assert list(target.iterdir()) == []


def test_settings_for_the_hub_are_refused_for_a_folder(shared, tmp_path):
    with pytest.raises(ConfigError, match="--revision is for hf://USER/NAME"):
        pull(shared, tmp_path / "out", revision="v2")
    with pytest.raises(ConfigError, match="--public is for hf://USER/NAME"):
        push(TRAINED, tmp_path / "out", public=True)
    assert not (tmp_path / "out").exists()


def test_a_card_has_only_metrics_that_are_defined(shared):
    card = (shared / CARD).read_text()
    assert "| AP | 0.351 |" in card
    assert "AP_large" not in card  # no large objects: -1 in the checkpoint


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        pull(tmp_path / "nothing", tmp_path / "fetched")


def test_damaged_notes_are_refused(shared, tmp_path):
    from safetensors.torch import load_file, save_file

    from src.detection.weight_file import SHARED_NOTES

    file = tmp_path / "model.safetensors"
    save_file(load_file(shared / WEIGHTS), file, {SHARED_NOTES: "{"})
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_weights(file)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A local server in place of Hugging Face Hub, and an account on it."""
    with local_hub() as state:
        monkeypatch.setenv("HF_ENDPOINT", state.address)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.chdir(tmp_path)
        yield state


def test_a_detector_goes_to_a_hub_and_back(hub):
    sent = push(TRAINED, "hf://me/shapes")
    assert "/me/shapes/commit/" in sent
    assert hub.repositories["me/shapes"].private
    assert set(hub.repositories["me/shapes"].files) == set(FILES)
    folder = pull("hf://me/shapes")
    assert folder == Path("weights/shapes")
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert Detector(folder).threshold == Detector(TRAINED).threshold


def test_other_files_of_a_repository_are_not_fetched(hub):
    push(TRAINED, "hf://me/shapes")
    hub.repositories["me/shapes"].files["setup.py"] = b"raise SystemExit"
    pull("hf://me/shapes")
    assert not any("setup.py" in request for request in hub.requests)


def test_a_second_upload_reports_that_it_replaces_the_card(hub, caplog):
    caplog.set_level(logging.INFO)
    push(TRAINED, "hf://me/shapes")
    assert "replaced" not in caplog.text
    push(TRAINED, "hf://me/shapes", title="Another title")
    assert "README.md of hf://me/shapes is replaced" in caplog.text
    assert b"# Another title" in hub.repositories["me/shapes"].files[CARD]


def test_a_public_repository_needs_consent(hub):
    push(TRAINED, "hf://me/shapes", public=True)
    assert not hub.repositories["me/shapes"].private
    hub.repositories["me/shapes"].files.clear()
    with pytest.raises(ConfigError, match="hf://me/shapes is public"):
        push(TRAINED, "hf://me/shapes")
    assert not hub.repositories["me/shapes"].files


def test_a_wrong_token_is_explained(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(ConfigError, match="hf auth login"):
        push(TRAINED, "hf://me/shapes")


def test_a_repository_that_does_not_exist_is_explained(hub):
    with pytest.raises(ConfigError, match="hf://me/nothing does not exist"):
        pull("hf://me/nothing")
    assert not Path("weights/nothing").exists()


def test_a_revision_that_does_not_exist_is_explained(hub):
    push(TRAINED, "hf://me/shapes")
    with pytest.raises(ConfigError, match="but not the revision"):
        pull("hf://me/shapes", revision="v9")


def test_a_hub_that_fails_is_a_fault_of_resources(hub):
    push(TRAINED, "hf://me/shapes")
    hub.broken = True
    with pytest.raises(ResourceError, match="the hub answers 500"):
        pull("hf://me/shapes")


def test_a_hub_that_cannot_be_reached_is_a_fault_of_resources(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match="cannot be reached"):
        pull("hf://me/shapes")
    with pytest.raises(ResourceError, match="cannot be reached"):
        push(TRAINED, "hf://me/shapes")


def test_a_card_that_the_hub_refuses_is_explained(hub):
    hub.card_faults = ['"license" must be one of [apache-2.0, ...]']
    with pytest.raises(ConfigError, match='model card: .*"license" must be'):
        push(TRAINED, "hf://me/shapes", licence="my own")


@pytest.mark.parametrize(
    "address",
    [
        "hf://me",
        "hf://a/b/c",
        "hf://",
        "hf://me/..",
        "hf://me/.",
        "hf://我/模型",
    ],
)
def test_addresses_of_other_forms_are_refused(address, tmp_path):
    with pytest.raises(ConfigError, match="expected hf://USER/NAME"):
        pull(address, tmp_path / "fetched")
    with pytest.raises(ConfigError, match="expected hf://USER/NAME"):
        push(TRAINED, address)


def test_a_server_with_another_protocol_is_a_fault_of_resources(
    hub, monkeypatch
):
    monkeypatch.setenv("HF_ENDPOINT", "ftp://example.invalid")
    with pytest.raises(ResourceError, match="protocol.*HF_ENDPOINT"):
        pull("hf://me/shapes")


def test_a_name_that_is_not_found_is_a_fault_of_resources(hub, monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ResourceError, match="cannot be reached.*not known"):
        pull("hf://me/shapes")


def test_an_address_that_only_the_hub_knows_to_be_wrong_is_refused(hub):
    with pytest.raises(ConfigError, match="is not an address on the hub"):
        pull("hf://me/a--b")
