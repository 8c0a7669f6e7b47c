"""Tensor files: written with a digest, read without running anything."""

import pickle
import random
import resource
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from src.core.errors import CheckpointError, ResourceError
from src.runtime.weight_files import (
    MARK,
    WRITER,
    checked_path,
    file_sha256,
    read_tensor_file,
    verify_digest,
    write_tensor_file,
)
from tests.fixtures.processes import run_forked


@pytest.fixture
def content():
    generator = torch.Generator().manual_seed(0)
    return {
        "model": OrderedDict(
            (f"layer{i}.weight", torch.randn(40, 40, generator=generator))
            for i in range(4)
        ),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 1e-3, "params": [0]}],
        },
        "epoch": 3,
        "score": None,
        "names": ["cat", "dog"],
    }


@pytest.fixture
def path(tmp_path, content) -> Path:
    path = tmp_path / "last.pth"
    write_tensor_file(path, content)
    return path


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    return a == b


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensor_file(path)
    return str(caught.value).replace(str(path), "FILE")


# ---- whole files ----


def test_written_values_are_read_back(path, content):
    assert equal(read_tensor_file(path), content)


def test_file_carries_its_own_digest(path):
    assert verify_digest(path) is True


def test_torch_alone_reads_the_file(path, content):
    assert equal(torch.load(path, weights_only=True), {MARK: WRITER, **content})


def test_file_of_torch_carries_no_digest_and_is_read(tmp_path, content):
    torch.save(content, tmp_path / "plain.pth")
    assert verify_digest(tmp_path / "plain.pth") is None
    assert equal(read_tensor_file(tmp_path / "plain.pth"), content)


def test_file_of_an_old_torch_is_read(tmp_path, content):
    torch.save(
        content, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    assert equal(read_tensor_file(tmp_path / "old.pth"), content)


def test_tensors_come_back_on_the_cpu(path):
    assert {
        t.device.type for t in read_tensor_file(path)["model"].values()
    } == {"cpu"}


def test_previous_file_is_kept_intact(path, content):
    write_tensor_file(
        path, {"epoch": 4}, keep_previous=path.with_name("previous.pth")
    )
    assert equal(read_tensor_file(path.with_name("previous.pth")), content)
    assert read_tensor_file(path) == {"epoch": 4}


def test_path_may_be_text(path, content):
    assert equal(read_tensor_file(str(path)), content)


def test_safetensors_are_read(tmp_path):
    weights = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.ones(2, dtype=torch.int64),
    }
    save_file(weights, tmp_path / "weights.safetensors")
    assert equal(read_tensor_file(tmp_path / "weights.safetensors"), weights)


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert (
        file_sha256(tmp_path / "abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


# ---- full disks ----


def test_full_disk_is_reported_and_the_old_file_stays(path, content):
    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        with pytest.raises(
            ResourceError,
            match=rf"^disk full writing {path}: need 2\.1 MB, free \d+\.\d MB, "
            r"1\.0 MB written before the error$",
        ):
            write_tensor_file(path, {"big": torch.zeros(1 << 19)})

    ended = run_forked(child, path.parent.parent)
    assert ended.code == 0, ended.err
    assert [file.name for file in path.parent.iterdir()] == ["last.pth"]
    assert equal(read_tensor_file(path), content)


# ---- damage ----


def flipped(path: Path, position: int, bit: int) -> Path:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1 << bit
    other = path.with_name("flipped.pth")
    other.write_bytes(raw)
    return other


def test_flipped_bit_in_a_weight_is_detected(path, content):
    weight = content["model"]["layer2.weight"].numpy().tobytes()
    bad = flipped(path, path.read_bytes().index(weight) + 100, 3)
    assert (
        torch.load(bad, weights_only=True)["model"].keys()
        == content["model"].keys()
    ), "torch itself notices nothing"
    assert (
        refused(bad)
        == f"FILE ({bad.stat().st_size} bytes) is damaged: its content does not match the digest inside it"
    )


def test_no_flipped_bit_changes_what_is_read(path, content):
    rng, size, detected = random.Random(0), path.stat().st_size, 0
    for _ in range(200):
        bad = flipped(path, rng.randrange(size), rng.randrange(8))
        try:
            assert equal(
                read_tensor_file(bad), content
            )  # a bit that means nothing, such as the word "sha256:" itself
        except CheckpointError:
            detected += 1
    assert detected >= 190


def test_flipped_bit_in_the_digest_is_detected(path):
    assert "does not match the digest inside it" in refused(
        flipped(path, path.stat().st_size - 10, 0)
    )


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_truncated_file_is_refused_with_its_size(path, share):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    assert refused(path).startswith(
        f"FILE ({int(len(raw) * share)} bytes) is damaged"
    )


def damages_at_the_end(raw: bytes) -> dict[str, bytes]:
    """Return sixty damaged forms of the last bytes of a file, where its digest is."""
    rng = random.Random(0)
    cuts = {
        f"cut by {count}": raw[:-count]
        for count in (*range(1, 16), 20, 30, 40, 50, 64, 70, 71, 72, 73, 93)
    }
    flips = {}
    for back in (*range(1, 12), 30, 64, 65, 70, 71, 72, 73):
        damaged = bytearray(raw)
        damaged[-back] ^= 1 << rng.randrange(8)
        flips[f"flipped {back} from the end"] = bytes(damaged)
    zeros = {
        f"{count} zeros": raw[:-count] + bytes(count)
        for count in (1, 2, 10, 30, 64, 71, 73)
    }
    more = {
        f"{count} bytes more": raw + bytes([count % 256]) * count
        for count in (1, 2, 22, 71, 73, 100, 1000)
    }
    moved = {
        "its end twice": raw + raw[-73:],
        "its digest twice": raw + raw[-64:],
        "an older end": raw[:-64] + b"0" * 64,
    }
    return cuts | flips | zeros | more | moved


def test_sixty_damages_near_the_end_are_all_noticed(path):
    damages = damages_at_the_end(path.read_bytes())
    assert len(damages) == 60
    loaded = []
    for name, damaged in damages.items():
        path.write_bytes(damaged)
        try:
            read_tensor_file(path)
            loaded.append(name)
        except CheckpointError as error:
            assert "damaged" in str(error) or "unpacks to" in str(error)
    assert loaded == []


def test_a_file_without_the_newer_mark_is_read_although_part_of_its_digest_is_lost(
    path, content, monkeypatch
):
    monkeypatch.setattr(
        "src.runtime.weight_files.MARK", "earlier versions wrote no mark"
    )
    write_tensor_file(path, content)
    path.write_bytes(path.read_bytes()[:-20])
    monkeypatch.undo()
    assert read_tensor_file(path).keys() >= content.keys()


def test_content_that_another_program_saved_again_is_refused_with_what_helps(
    path,
):
    torch.save(torch.load(path, weights_only=True), path)
    with pytest.raises(
        CheckpointError, match="it must leave out the entry 'written_by'"
    ):
        read_tensor_file(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"x",
        b"<html><body>404 Not Found</body></html>",
        b"PK\x03\x04",
        b"PK\x05\x06" + bytes(18),
        b"\x80\x02",
        bytes(1000),
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_file_that_is_not_a_torch_file_is_refused(path, raw):
    path.write_bytes(raw)
    assert refused(path).startswith("FILE ")


@pytest.mark.parametrize("legacy", [False, True])
def test_garbled_files_of_torch_are_read_or_refused(tmp_path, content, legacy):
    path, rng, refusals = tmp_path / "garbled.pth", random.Random(1), 0
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    raw = path.read_bytes()
    for _ in range(300):
        garbled = bytearray(raw)
        for _ in range(rng.choice([1, 3, 20])):
            garbled[rng.randrange(1500)] = rng.randrange(256)
        path.write_bytes(garbled)
        try:
            read_tensor_file(path)
        except CheckpointError:
            refusals += 1
    assert refusals > 50


def test_empty_file_is_refused(path):
    path.write_bytes(b"")
    assert refused(path) == "FILE is empty (0 bytes)"


def test_missing_file_is_refused_with_where_it_was_looked_for(tmp_path):
    assert (
        refused(tmp_path / "absent.pth")
        == f"FILE does not exist (looked from {Path.cwd()})"
    )


def test_folder_is_refused(tmp_path):
    assert refused(tmp_path) == "FILE is not a file"


@pytest.mark.parametrize(
    "raw",
    [
        b"x",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 2) + b"{}" + b"extra",
        struct.pack("<Q", 9) + b'{"a": [1]}',
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, raw):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(raw)
    assert refused(path).startswith(
        f"FILE ({len(raw)} bytes) is damaged or not a safetensors file: "
    )


def test_truncated_safetensors_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-7])
    assert "is damaged or not a safetensors file" in refused(path)


# ---- hostile files ----


class _Touches:
    """Unpickles by writing a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


class _Executes:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return eval, (f"open({str(self.canary)!r}, 'w')",)


@pytest.mark.parametrize("kind", [_Touches, _Executes])
@pytest.mark.parametrize(
    "save",
    [
        torch.save,
        lambda content, path: torch.save(
            content, path, _use_new_zipfile_serialization=False
        ),
        lambda content, path: path.write_bytes(pickle.dumps(content)),
    ],
    ids=["zip", "legacy", "pickle"],
)
def test_code_in_a_file_is_not_executed(tmp_path, kind, save):
    save(
        {"model": {"w": torch.zeros(2)}, "extra": kind(tmp_path / "canary")},
        tmp_path / "evil.pth",
    )
    message = refused(tmp_path / "evil.pth")
    assert not (tmp_path / "canary").exists()
    assert "it was not loaded" in message


@pytest.mark.parametrize(
    ("kind", "name"), [(_Touches, "getattr"), (_Executes, "eval")]
)
def test_refused_global_is_named_and_unsafe_loading_never_advised(
    tmp_path, kind, name
):
    torch.save({"extra": kind(tmp_path / "canary")}, tmp_path / "evil.pth")
    message = refused(tmp_path / "evil.pth")
    assert message.startswith(
        "FILE is not a file of plain tensors: it refers to "
    )
    assert name in message
    assert "weights_only" not in message


def test_refusal_comes_without_warnings_of_torch(tmp_path):
    (tmp_path / "evil.pth").write_bytes(
        pickle.dumps(_Executes(tmp_path / "canary"))
    )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        refused(tmp_path / "evil.pth")
    assert warned == []


def test_code_behind_a_first_error_is_not_executed_by_a_second_attempt(
    tmp_path,
):
    torch.save(
        [_Executes(tmp_path / "first"), _Executes(tmp_path / "second")],
        tmp_path / "evil.pth",
    )
    refused(tmp_path / "evil.pth")
    assert list(tmp_path.iterdir()) == [tmp_path / "evil.pth"]


def test_pickle_under_the_name_of_safetensors_is_not_executed(tmp_path):
    (tmp_path / "evil.safetensors").write_bytes(
        pickle.dumps(_Executes(tmp_path / "canary"))
    )
    assert "is damaged or not a safetensors file" in refused(
        tmp_path / "evil.safetensors"
    )
    assert not (tmp_path / "canary").exists()


def test_compressed_archive_that_would_explode_is_refused_before_it_is_read(
    tmp_path, monkeypatch
):
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "honest.pth")
    with (
        zipfile.ZipFile(tmp_path / "honest.pth") as honest,
        zipfile.ZipFile(
            tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED
        ) as bomb,
    ):
        for record in honest.infolist():
            bomb.writestr(record.filename, honest.read(record))
    monkeypatch.setattr(
        torch, "load", lambda *_, **__: pytest.fail("the file was read")
    )
    packed = (tmp_path / "bomb.pth").stat().st_size
    message = refused(tmp_path / "bomb.pth")
    assert message.startswith(f"FILE has {packed} bytes but unpacks to 419")
    assert message.endswith(
        "; torch does not write such files, so it was not loaded"
    )


def test_archive_whose_records_overlap_is_refused(tmp_path, monkeypatch):
    """Uncompressed records that all point to the same bytes: the directory claims more than the file has."""
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", bytes(10_000))
        archive.filelist += archive.filelist * 50
    monkeypatch.setattr(
        torch, "load", lambda *_, **__: pytest.fail("the file was read")
    )
    assert (
        refused(path)
        == f"FILE has {path.stat().st_size} bytes but claims records of 510000; it was not loaded"
    )


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: torch.ones(1).expand(100_000_000_000),
            "bytes but contains a tensor of 400000000000 bytes; it was not loaded",
        ),
        (
            lambda: torch.ones(1 << 40, device="meta"),
            (
                "contains a tensor that is sparse, quantized or without data, "
                "expected dense tensors; it was not loaded"
            ),
        ),
        (
            lambda: torch.sparse_coo_tensor(
                [[0], [0]], [1.0], (1 << 20, 1 << 20)
            ),
            "contains a tensor that is sparse, quantized or without data",
        ),
    ],
    ids=["stride of 0", "meta", "sparse"],
)
def test_tensor_that_a_few_bytes_stand_for_is_refused_at_any_depth(
    tmp_path, make, expected
):
    torch.save(
        {
            "model": {"sound": torch.ones(3)},
            "optimizer": [{"state": (1, make())}],
        },
        tmp_path / "no_data.pth",
    )
    assert expected in refused(tmp_path / "no_data.pth")


def test_tensors_that_share_bytes_and_containers_that_repeat_are_read(tmp_path):
    part = {"w": torch.ones(4)}
    content = {
        "a": part,
        "b": [part, part],
        "row": torch.zeros(1).expand(1000),
        "half": part["w"][:2],
    }
    content["itself"] = content["b"]
    torch.save(content, tmp_path / "shared.pth")
    assert equal(read_tensor_file(tmp_path / "shared.pth"), content)


def test_script_is_refused_and_unsafe_loading_never_advised(tmp_path):
    torch.jit.save(
        torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pth"
    )
    assert (
        refused(tmp_path / "script.pth")
        == "FILE is a TorchScript archive or a tar file, which may contain code; it was not loaded"
    )


@pytest.mark.parametrize(
    "address",
    [
        "https://example.com/best.pth",
        "http://example.com/best.pth",
        "file:///etc/passwd",
        "s3://bucket/best.pth",
    ],
)
def test_address_is_refused(address):
    with pytest.raises(CheckpointError) as caught:
        read_tensor_file(address)
    assert (
        str(caught.value)
        == f"{address} is a URL; download the file yourself, check it, and give its local path"
    )


def test_home_folder_is_understood(path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    assert checked_path("~/last.pth") == path
