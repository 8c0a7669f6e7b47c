"""Files that are whole or not there."""

import json
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from src.core.errors import ConfigError, ResourceError
from src.runtime.files import (
    LOCK,
    append_line,
    json_bytes,
    locked,
    prepare_output_dir,
    refuse_replacing,
    remove_leftovers,
    temporary_path,
    write_atomically,
    write_json,
)
from tests.fixtures.processes import run_forked


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    return path


def content_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_new_content_replaces_the_old(path):
    write_atomically(path, lambda file: file.write(b"new"))
    assert content_of(path.parent) == {"file.bin": b"new"}


def test_file_is_created(tmp_path):
    write_atomically(tmp_path / "fresh.bin", lambda file: file.write(b"new"))
    assert content_of(tmp_path) == {"fresh.bin": b"new"}


def test_old_content_stays_while_the_new_is_written(path):
    seen = []

    def write(file):
        file.write(b"new")
        file.flush()
        seen.append(path.read_bytes())

    write_atomically(path, write)
    assert seen == [b"old"]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(3), ValueError("x")],
)
def test_old_content_stays_and_no_temporary_file_is_left_when_the_writer_fails(
    path, error
):
    def write(file):
        file.write(b"half of the n")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert content_of(path.parent) == {"file.bin": b"old"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("keep_previous", [None, "previous.bin"])
def test_old_content_stays_when_the_system_fails(
    path, monkeypatch, call, keep_previous
):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(
        ResourceError, match=f"^{path} cannot be written: Input/output error$"
    ):
        write_atomically(
            path,
            lambda file: file.write(b"new"),
            keep_previous=keep_previous and path.with_name(keep_previous),
        )
    assert content_of(path.parent) == {"file.bin": b"old"}


def test_previous_content_stays_under_the_other_name(path):
    write_atomically(
        path,
        lambda file: file.write(b"new"),
        keep_previous=path.with_name("previous.bin"),
    )
    assert content_of(path.parent) == {
        "file.bin": b"new",
        "previous.bin": b"old",
    }


def test_previous_content_is_that_of_the_last_write(path):
    for text in (b"second", b"third", b"fourth"):
        write_atomically(
            path,
            lambda file, text=text: file.write(text),
            keep_previous=path.with_name("previous.bin"),
        )
    assert content_of(path.parent) == {
        "file.bin": b"fourth",
        "previous.bin": b"third",
    }


def test_first_write_keeps_no_previous(tmp_path):
    write_atomically(
        tmp_path / "fresh.bin",
        lambda file: file.write(b"new"),
        keep_previous=tmp_path / "previous.bin",
    )
    assert content_of(tmp_path) == {"fresh.bin": b"new"}


def test_file_is_there_at_every_moment_of_a_write_that_keeps_the_previous(
    path, monkeypatch
):
    seen, replace = [], os.replace

    def watched(source, target):
        seen.append(path.read_bytes())
        replace(source, target)
        seen.append(path.read_bytes())

    monkeypatch.setattr(os, "replace", watched)
    write_atomically(
        path,
        lambda file: file.write(b"new"),
        keep_previous=path.with_name("previous.bin"),
    )
    assert seen == [b"old", b"old", b"old", b"new"]


def test_write_after_a_crash_between_keeping_and_replacing_leaves_nothing_over(
    path,
):
    os.link(
        path, path.with_name("previous.bin")
    )  # what such a crash leaves: both names are one file
    write_atomically(
        path,
        lambda file: file.write(b"new"),
        keep_previous=path.with_name("previous.bin"),
    )
    assert content_of(path.parent) == {
        "file.bin": b"new",
        "previous.bin": b"old",
    }


def test_previous_content_is_copied_where_files_cannot_have_two_names(
    path, monkeypatch
):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_atomically(
        path,
        lambda file: file.write(b"new"),
        keep_previous=path.with_name("previous.bin"),
    )
    assert content_of(path.parent) == {
        "file.bin": b"new",
        "previous.bin": b"old",
    }


def test_full_disk_is_reported_with_the_bytes_needed_free_and_written(path):
    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        with pytest.raises(
            ResourceError,
            match=rf"^disk full writing {path}: need 2\.1 MB, free \d+\.\d MB, "
            r"1\.0 MB written before the error$",
        ):
            write_atomically(
                path,
                lambda file: [file.write(bytes(1 << 18)) for _ in range(8)],
            )

    ended = run_forked(child, path.parent.parent)
    assert (ended.code, content_of(path.parent)) == (0, {"file.bin": b"old"}), (
        ended.err
    )


def test_missing_folder_is_reported(tmp_path):
    with pytest.raises(
        ResourceError,
        match=r"/absent/file.bin cannot be written: No such file or directory$",
    ):
        write_atomically(tmp_path / "absent" / "file.bin", lambda file: None)


def test_json_is_readable_text(tmp_path):
    write_json(
        tmp_path / "file.json", {"name": "Zoë", "numbers": [1, 2.5, None]}
    )
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert "Zoë" in text
    assert json.loads(text) == {"name": "Zoë", "numbers": [1, 2.5, None]}


# ---- folders ----


def test_output_folder_is_created_with_its_parents_and_left_empty(tmp_path):
    folder = prepare_output_dir(tmp_path / "a" / "b")
    assert (folder, list(folder.iterdir())) == (tmp_path / "a" / "b", [])


def test_output_folder_with_content_is_left_as_it_is(path):
    prepare_output_dir(path.parent)
    assert content_of(path.parent) == {"file.bin": b"old"}


def test_file_in_place_of_the_output_folder_is_refused(path):
    with pytest.raises(
        ConfigError,
        match=f"^output_dir {path} cannot be written to: File exists$",
    ):
        prepare_output_dir(path)


def test_file_in_place_of_a_parent_is_refused(path):
    with pytest.raises(
        ConfigError,
        match=f"^output_dir {path}/run cannot be written to: Not a directory$",
    ):
        prepare_output_dir(path / "run")


def test_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(
        ConfigError,
        match=f"^output_dir {tmp_path} cannot be written to: Permission denied$",
    ):
        prepare_output_dir(tmp_path)


def test_half_written_files_are_removed_and_named(path):
    leftovers = {
        temporary_path(path.with_name(name)).name
        for name in ("last.pth", "probe")
    }
    for name in leftovers:
        (path.parent / name).touch()
    assert set(remove_leftovers(path.parent)) == leftovers
    assert content_of(path.parent) == {"file.bin": b"old"}


@pytest.mark.parametrize(
    "name",
    [
        "last.pth.tmp.123",
        ".last.pth.tmp",
        "data.tmp.csv",
        ".x.12-zzzzzzzz.dfine-tmp",
        "x.dfine-tmp",
    ],
)
def test_temporary_files_of_others_are_left_alone(path, name):
    path.with_name(name).write_bytes(b"theirs")
    assert remove_leftovers(path.parent) == []
    assert path.with_name(name).read_bytes() == b"theirs"


def test_a_link_with_the_name_of_a_temporary_file_is_unchanged(path):
    link = temporary_path(path)
    link.symlink_to(path)
    assert remove_leftovers(path.parent) == []
    assert link.is_symlink() and path.read_bytes() == b"old"


def test_a_file_that_is_being_written_is_no_leftover(path):
    found = []
    write_atomically(
        path,
        lambda file: (
            found.extend(remove_leftovers(path.parent)) or file.write(b"new")
        ),
    )
    assert found == []
    assert content_of(path.parent) == {"file.bin": b"new"}


def test_a_temporary_file_is_never_written_through_a_link(
    path, monkeypatch, tmp_path
):
    target = tmp_path / "theirs"
    target.write_bytes(b"theirs")
    place = tmp_path / ".file.bin.1-00000000.dfine-tmp"
    place.symlink_to(target)
    monkeypatch.setattr("src.runtime.files.temporary_path", lambda *_: place)
    with pytest.raises(ResourceError, match="cannot be written: File exists"):
        write_atomically(path, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"theirs" and path.read_bytes() == b"old"


def test_a_line_is_not_appended_through_a_link(path):
    link = path.with_name("log.txt")
    link.symlink_to(path)
    with pytest.raises(ResourceError, match="log.txt cannot be written"):
        append_line(link, b"line")
    assert path.read_bytes() == b"old"
    append_line(path, b"line")
    assert path.read_bytes() == b"oldline\n"


def test_json_holds_file_names_that_are_not_utf8():
    name = os.fsdecode(b"caf\xe9.jpg")
    assert json.loads(json_bytes({"file_name": name})) == {"file_name": name}
    assert json_bytes({"name": "Zoë"}) == '{"name": "Zoë"}'.encode()


def test_file_half_written_by_a_killed_process_is_treated_as_a_leftover(path):
    def child():
        write_atomically(path, lambda file: os._exit(9))

    run_forked(child, path.parent.parent)
    assert len(remove_leftovers(path.parent)) == 1
    assert content_of(path.parent) == {"file.bin": b"old"}


# ---- locks ----


def test_second_holder_of_a_folder_is_refused_with_the_pid_of_the_first(
    tmp_path,
):
    with (
        locked(tmp_path),
        pytest.raises(ConfigError) as caught,
        locked(tmp_path),
    ):
        pass
    assert (
        str(caught.value)
        == f"{tmp_path} is in use by process {os.getpid()}; choose another --output-dir"
    )


def test_refused_attempt_leaves_the_pid_of_the_holder(tmp_path):
    with locked(tmp_path):
        for _ in range(2):
            with (
                pytest.raises(
                    ConfigError, match=f"in use by process {os.getpid()};"
                ),
                locked(tmp_path),
            ):
                pass


def test_other_process_is_refused_with_the_pid_of_the_holder(tmp_path):
    (tmp_path / "run").mkdir()

    def child():
        with locked(tmp_path / "run"):
            pass

    with locked(tmp_path / "run"):
        ended = run_forked(child, tmp_path)
    assert f"is in use by process {os.getpid()};" in ended.err


def test_folder_is_free_after_the_block(tmp_path):
    with locked(tmp_path):
        pass
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text() == str(os.getpid())


def test_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="x"), locked(tmp_path):
        raise ValueError("x")
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()


def test_folder_is_free_after_its_holder_was_killed(tmp_path):
    (tmp_path / "run").mkdir()

    def child():
        with locked(tmp_path / "run"):
            os._exit(9)

    assert run_forked(child, tmp_path).code == 9
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).read_text() == str(os.getpid())


def test_folder_is_free_after_its_holder_was_killed_although_a_child_of_it_still_runs(
    tmp_path,
):
    ready, begun = os.pipe()
    holder = os.fork()
    if not holder:
        with locked(tmp_path):
            worker = os.fork()
            if not worker:
                os.write(begun, b"x")
                time.sleep(30)
                os._exit(0)
            (tmp_path / "worker").write_text(str(worker))
            os.read(ready, 1)
            os._exit(9)
    os.waitpid(holder, 0)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


def test_a_result_never_replaces_a_foreign_file_or_a_link(path, tmp_path):
    refuse_replacing(tmp_path / "free.json")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (path, tmp_path / "link"):
        with pytest.raises(
            ConfigError, match="already exists and would be replaced"
        ):
            refuse_replacing(taken)


def test_a_lock_that_is_a_link_or_somebody_elses_file_is_refused_and_left_as_it_is(
    path,
):
    lock = path.with_name(LOCK)
    lock.symlink_to(path)
    with (
        pytest.raises(
            ConfigError, match="cannot be used as a lock: it is a symbolic link"
        ),
        locked(path.parent),
    ):
        pass
    lock.unlink()
    lock.write_text("yarn lockfile v1")
    with (
        pytest.raises(ConfigError, match="is not a lock of this project"),
        locked(path.parent),
    ):
        pass
    assert (path.read_bytes(), lock.read_text()) == (b"old", "yarn lockfile v1")
