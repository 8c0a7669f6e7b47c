"""Paths as users write them, and text files as other programs write them (K3, K8)."""

import os
from pathlib import Path

import pytest

from src.core.paths import (
    did_you_mean_file,
    read_text,
    similar_names,
    user_path,
)


def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/data") == Path("/home/me/data")
    assert user_path("data/~x") == Path("data/~x")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]
)
def test_text_is_read_whatever_byte_order_mark_it_has(tmp_path, encoding):
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    (tmp_path / "a.txt").write_bytes(mark + "猫 café".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "猫 café"


def test_bytes_that_are_not_utf8_are_read_as_asked(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a.txt")
    assert (
        os.fsencode(read_text(tmp_path / "a.txt", errors="surrogateescape"))
        == b"caf\xe9"
    )


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("Data/Train.JSON", "data/train.json"),
        ("data\\train.json", "data/train.json"),
        ("data/trian.json", "data/train.json"),
        ("data/cafe\u0301.json", "data/café.json"),
        ("data/my%20file.json", "data/my file.json"),
        ("data/set", "data/set #2"),
        ("data/title", "data/title: one"),
    ],
)
def test_a_similar_file_name_is_suggested(tmp_path, monkeypatch, asked, meant):
    (tmp_path / "data").mkdir()
    for name in (
        "train.json",
        "café.json",
        "my file.json",
        "set #2",
        "title: one",
    ):
        (tmp_path / "data" / name).touch()
    monkeypatch.chdir(tmp_path)
    assert did_you_mean_file(asked) == f"; did you mean '{meant}'?"
    assert (
        did_you_mean_file(tmp_path / asked)
        == f"; did you mean '{tmp_path / meant}'?"
    )


@pytest.mark.parametrize(
    "asked", ["data/other.bin", "nowhere/train.json", "data/train_002.json"]
)
def test_nothing_is_suggested_if_nothing_is_similar(
    tmp_path, monkeypatch, asked
):
    (tmp_path / "data").mkdir()
    for name in ("train.json", "train_001.json"):
        (tmp_path / "data" / name).touch()
    monkeypatch.chdir(tmp_path)
    assert did_you_mean_file(asked) == ""


def test_other_numbers_mean_other_files(tmp_path):
    for name in ("image_001.jpg", "image_003.jpg"):
        (tmp_path / name).touch()
    assert similar_names(tmp_path, "image_002.jpg") == []
    assert similar_names(tmp_path, "imag_003.jpg") == ["image_003.jpg"]
