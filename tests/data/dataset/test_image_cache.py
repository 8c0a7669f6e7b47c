"""Caches of decoded images change how long an epoch takes, and nothing else."""

import errno
import mmap
import os
import signal
from pathlib import Path

import pytest
import torch

from src.core.errors import ConfigError
from src.data.dataset import image_cache
from src.data.dataset.image_cache import (
    DiskCache,
    Entry,
    Key,
    MemoryCache,
    open_cache,
)
from src.data.dataset.picture import ImageFlag
from src.data.transforms.pixels import Pixels
from src.runtime.files import temporary_path

LIMIT = 10_000_000


def picture(value: int, height: int = 20, width: int = 30) -> Entry:
    """Return a decoded image whose channels follow each other."""
    image = torch.full((3, height, width), value, dtype=torch.uint8)
    image[1] = 255 - value
    return Entry(Pixels(image, 4, (0.25, 0.0)), ImageFlag.ROTATED)


def by_pixel(value: int) -> Entry:
    """Return a decoded image whose pixels follow each other, as Pillow leaves them."""
    rows = torch.full((20, 30, 3), value, dtype=torch.uint8)
    rows[..., 2] = 7
    return Entry(Pixels(rows.permute(2, 0, 1), 2), ImageFlag(0))


def key_of(file: Path, position: int = 0, reduction: int = 4) -> Key:
    return Key(position, str(file), (120, 80), None, reduction)


@pytest.fixture(params=["memory", "disk"])
def cache(request, tmp_path):
    if request.param == "memory":
        return MemoryCache(10, LIMIT)
    return DiskCache(tmp_path / "cache", LIMIT)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(b"content")
    return path


def equal(found: Entry | None, entry: Entry) -> bool:
    return (
        found is not None
        and torch.equal(found.pixels.image, entry.pixels.image)
        and found.pixels.image.stride() == entry.pixels.image.stride()
        and found.pixels[1:] == entry.pixels[1:]
        and found.flags == entry.flags
    )


# ---- entries ----


@pytest.mark.parametrize("entry", [picture(3), by_pixel(3)])
def test_an_entry_comes_back_as_it_was(cache, file, entry):
    key = key_of(file)
    assert cache.get(key, file.stat()) is None
    cache.put(key, file.stat(), entry)
    assert equal(cache.get(key, file.stat()), entry)


def test_images_and_reductions_have_entries_of_their_own(cache, file, tmp_path):
    other = tmp_path / "other.jpg"
    other.write_bytes(b"content")
    keys = [key_of(file), key_of(file, 0, 1), key_of(other, 1)]
    for value, key in enumerate(keys):
        cache.put(key, Path(key.path).stat(), picture(value))
    for value, key in enumerate(keys):
        assert equal(cache.get(key, Path(key.path).stat()), picture(value))
    assert cache.get(key_of(file, 0, 2), file.stat()) is None


def test_changing_an_image_that_was_returned_leaves_the_cache_alone(
    cache, file
):
    cache.put(key_of(file), file.stat(), picture(3))
    cache.get(key_of(file), file.stat()).pixels.image.zero_()
    assert equal(cache.get(key_of(file), file.stat()), picture(3))


def rewritten(file: Path) -> None:
    file.write_bytes(b"longer content")


def replaced_with_its_old_time(file: Path) -> None:
    times = file.stat()
    new = file.with_suffix(".new")
    new.write_bytes(b"CONTENT")
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    new.replace(file)


def touched(file: Path) -> None:
    os.utime(file, (1, 1))


@pytest.mark.parametrize(
    "change", [rewritten, replaced_with_its_old_time, touched]
)
def test_a_changed_file_is_decoded_again(cache, file, change):
    cache.put(key_of(file), file.stat(), picture(3))
    change(file)
    assert cache.get(key_of(file), file.stat()) is None
    cache.put(key_of(file), file.stat(), picture(4))
    assert equal(cache.get(key_of(file), file.stat()), picture(4))


def test_a_full_cache_keeps_what_it_has(file, tmp_path):
    size = 3 * 200 * 300
    for cache in (
        MemoryCache(40, 5 * size),
        DiskCache(tmp_path / "cache", 5 * size),
    ):
        for position in range(40):
            key = key_of(file, position)._replace(path=f"{file}{position}")
            cache.put(key, file.stat(), picture(position, 200, 300))
        hits = []
        for position in range(40):
            key = key_of(file, position)._replace(path=f"{file}{position}")
            found = cache.get(key, file.stat())
            if found is not None:
                assert equal(found, picture(position, 200, 300))
                hits.append(position)
        assert 3 <= len(hits) <= 5
        assert hits == list(range(len(hits)))
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5 * size


# ---- several processes ----


def in_a_child(work) -> int:
    """Run a function in a forked process; return its exit code, or the negative number of a signal."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_all_workers_see_what_one_of_them_added(cache, file):
    in_a_child(lambda: cache.put(key_of(file), file.stat(), picture(3)))
    assert equal(cache.get(key_of(file), file.stat()), picture(3))


def test_workers_that_write_at_the_same_time_do_not_disturb_each_other(
    cache, file
):
    children = []
    for worker in range(4):
        child = os.fork()
        if not child:
            for position in range(10):
                key = key_of(file, position)._replace(path=f"{file}{position}")
                cache.put(key, file.stat(), picture(position, 40, 50 + worker))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    for position in range(10):
        key = key_of(file, position)._replace(path=f"{file}{position}")
        found = cache.get(key, file.stat())
        width = found.pixels.image.shape[2]
        assert equal(found, picture(position, 40, width))


def test_memory_is_handed_to_a_worker_with_a_new_interpreter(file):
    cache = MemoryCache(4, LIMIT)
    cache.put(key_of(file), file.stat(), picture(3))
    context = torch.multiprocessing.get_context("spawn")
    process = context.Process(target=add_another, args=(cache, file))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert equal(cache.get(key_of(file, 1), file.stat()), picture(5))


def add_another(cache: MemoryCache, file: Path) -> None:
    assert equal(cache.get(key_of(file), file.stat()), picture(3))
    cache.put(key_of(file, 1), file.stat(), picture(5))


def test_a_worker_that_is_killed_while_it_writes_leaves_no_entry(
    cache, file, monkeypatch
):
    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def write():
        # after the room is reserved, and before the entry is complete
        monkeypatch.setattr(os, "fsync", killed)
        monkeypatch.setattr(MemoryCache, "_row", killed)
        cache.put(key_of(file), file.stat(), picture(3))

    assert in_a_child(write) == -signal.SIGKILL
    assert cache.get(key_of(file), file.stat()) is None
    cache.put(key_of(file), file.stat(), picture(4))
    assert equal(cache.get(key_of(file), file.stat()), picture(4))


def test_a_worker_that_is_killed_with_the_lock_does_not_block_the_others(file):
    cache = MemoryCache(4, LIMIT)

    def die():
        with cache._locked():
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(die) == -signal.SIGKILL
    cache.put(key_of(file), file.stat(), picture(3))
    assert equal(cache.get(key_of(file), file.stat()), picture(3))


# ---- the folder ----


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


def test_a_later_run_uses_the_folder_again(file, tmp_path):
    DiskCache(tmp_path / "c", LIMIT).put(key_of(file), file.stat(), picture(3))
    later = DiskCache(tmp_path / "c", LIMIT)
    assert equal(later.get(key_of(file), file.stat()), picture(3))


def test_another_decoder_does_not_use_the_entries(file, tmp_path, monkeypatch):
    DiskCache(tmp_path / "c", LIMIT).put(key_of(file), file.stat(), picture(3))
    monkeypatch.setattr(image_cache.metadata, "version", lambda _: "99")
    later = DiskCache(tmp_path / "c", LIMIT)
    assert later.get(key_of(file), file.stat()) is None


@pytest.mark.parametrize("kind", ["cut", "empty", "changed", "longer"])
def test_a_damaged_entry_is_not_used(file, tmp_path, kind):
    cache = DiskCache(tmp_path / "c", LIMIT)
    cache.put(key_of(file), file.stat(), picture(3))
    (entry,) = entries(cache.folder)
    raw = bytearray(entry.read_bytes())
    if kind == "changed":
        raw[-5] ^= 1
    entry.write_bytes(
        {"cut": raw[:500], "empty": b"", "longer": raw + b"x"}.get(kind, raw)
    )
    assert cache.get(key_of(file), file.stat()) is None
    cache.put(key_of(file), file.stat(), picture(3))
    assert equal(cache.get(key_of(file), file.stat()), picture(3))


def test_the_folder_may_be_deleted_during_a_run(file, tmp_path):
    cache = DiskCache(tmp_path / "c", LIMIT)
    cache.put(key_of(file), file.stat(), picture(3))
    (entry,) = entries(cache.folder)
    entry.unlink()
    entry.parent.rmdir()
    assert cache.get(key_of(file), file.stat()) is None
    cache.put(key_of(file), file.stat(), picture(3))
    assert equal(cache.get(key_of(file), file.stat()), picture(3))


@pytest.mark.parametrize(
    "reason", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO]
)
def test_a_full_disk_ends_the_cache_and_not_the_run(
    file, tmp_path, monkeypatch, caplog, reason
):
    cache = DiskCache(tmp_path / "c", LIMIT)

    def fail(*_):
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        cache.put(key_of(file), file.stat(), picture(3))
        cache.put(key_of(file, 1), file.stat(), picture(3))
    assert caplog.text.count("takes no more images") == 1
    assert cache.get(key_of(file), file.stat()) is None
    assert list(cache.folder.glob("??/.*")) == []


def test_start_removes_what_killed_processes_left_and_the_oldest_above_the_limit(
    file, tmp_path
):
    cache = DiskCache(tmp_path / "c", LIMIT)
    for position in range(4):
        key = key_of(file, position)._replace(path=f"{file}{position}")
        cache.put(key, file.stat(), picture(position, 200, 300))
    left = temporary_path(entries(cache.folder)[0])
    left.write_bytes(b"incomplete")
    oldest = entries(cache.folder)[0]
    os.utime(oldest, (1, 1))
    DiskCache(tmp_path / "c", 3 * 181_000)
    assert not left.exists()
    assert not oldest.exists()
    assert len(entries(cache.folder)) == 3


def test_several_runs_share_the_limit(file, tmp_path):
    limit = 5 * 200_000
    caches = [DiskCache(tmp_path / "c", limit) for _ in range(3)]
    for position in range(12):
        key = key_of(file, position)._replace(path=f"{file}{position}")
        caches[position % 3].put(key, file.stat(), picture(1, 200, 300))
    assert 3 <= len(entries(tmp_path / "c")) <= 5


# ---- a folder with other files ----


def test_files_of_others_are_not_deleted_above_the_limit(file, tmp_path):
    folder = tmp_path / "photos"
    shard = folder / "ab"
    shard.mkdir(parents=True)
    foreign = [shard / "photo.jpg", shard / ("0f" * 20), folder / "list.txt"]
    for path in foreign:
        path.write_bytes(b"somebody's photo" * 100)
    cache = DiskCache(folder, 1000)
    cache.put(key_of(file), file.stat(), picture(3))
    for path in foreign:
        assert path.read_bytes() == b"somebody's photo" * 100


def test_a_file_named_used_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "used").write_text("notes")
    with pytest.raises(ConfigError, match="does not belong to an image cache"):
        DiskCache(tmp_path, LIMIT)
    assert (tmp_path / "used").read_text() == "notes"


def test_start_removes_an_incomplete_count(tmp_path):
    DiskCache(tmp_path / "c", LIMIT)
    left = temporary_path(tmp_path / "c" / "used")
    left.write_bytes(b"\0")
    DiskCache(tmp_path / "c", LIMIT)
    assert not left.exists()


# ---- settings ----


def test_no_setting_is_no_cache():
    assert open_cache(None, None, 10) is None


def test_settings_choose_the_place(tmp_path):
    assert isinstance(open_cache("memory", 0.001, 10), MemoryCache)
    cache = open_cache(str(tmp_path / "c"), 0.5, 10)
    assert cache.limit == 500_000_000


@pytest.mark.parametrize("size", [0, -1, float("nan"), float("inf"), 1e7])
def test_size_that_is_not_positive_or_impossible_is_refused(size):
    with pytest.raises(ConfigError, match=r"image_cache_gb is .*, expected"):
        open_cache("memory", size, 10)


@pytest.mark.parametrize("name", ["ftruncate", "mmap"])
def test_memory_that_the_system_does_not_reserve_is_reported(monkeypatch, name):
    def fail(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    before = os.listdir("/proc/self/fd") if Path("/proc").exists() else []
    monkeypatch.setattr(os if name == "ftruncate" else mmap, name, fail)
    with pytest.raises(
        ConfigError, match=r"of 8 GB .*Cannot allocate memory; set .*_gb"
    ):
        open_cache("memory", None, 10)
    monkeypatch.undo()
    if before:
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="image_cache is empty"):
        open_cache("", None, 10)
    assert list(tmp_path.iterdir()) == []


def test_size_without_a_place_is_refused():
    with pytest.raises(ConfigError, match="is set without image_cache"):
        open_cache(None, 3.0, 10)


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"image_cache .*file cannot be used"):
        open_cache(str(tmp_path / "file"), None, 10)
