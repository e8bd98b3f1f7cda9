"""Files and folders appear whole or not at all, and are on disk before they have their name."""

import os
import time
from pathlib import Path

import pytest

from jaxval import atomic


@pytest.fixture
def synced(monkeypatch):
    """The paths that are synced, in order, by the names that they have then."""
    paths = []

    def fsync(descriptor):
        paths.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(path, content):
    with atomic.replace_file(path) as partial:
        partial.write_text(content)


def test_a_file_is_created_and_then_replaced(tmp_path):
    for content in ("old", "new"):
        write(tmp_path / "file", content)
        assert (tmp_path / "file").read_text() == content
        assert names(tmp_path) == ["file"]


def test_the_old_file_is_there_until_the_new_one_is_complete(tmp_path):
    write(tmp_path / "file", "old")
    with atomic.replace_file(tmp_path / "file") as partial:
        partial.write_text("ne")
        assert (tmp_path / "file").read_text() == "old"
        assert partial.parent == tmp_path
        partial.write_text("new")
    assert (tmp_path / "file").read_text() == "new"


def test_two_writers_do_not_share_a_temporary_file(tmp_path):
    with atomic.replace_file(tmp_path / "file") as first:
        first.write_text("first")
        write(tmp_path / "file", "second")
        assert (tmp_path / "file").read_text() == "second"
    assert (tmp_path / "file").read_text() == "first"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    write(tmp_path / "file", "old")

    def broken():
        with atomic.replace_file(tmp_path / "file") as partial:
            partial.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        broken()
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_sync_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write(tmp_path / "file", "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_afterwards(tmp_path, synced):
    write(tmp_path / "file", "new")
    file, folder = synced
    assert file.startswith(f"{tmp_path}/.file.")
    assert folder == str(tmp_path)


def test_a_file_system_that_cannot_sync_folders_is_no_error(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def build(path, taken=lambda: False):
    partial = atomic.make_partial(path)
    (partial / "inner").mkdir()
    (partial / "inner" / "file").write_text("content")
    atomic.publish_folder(partial, path, taken)
    return partial


def test_a_folder_is_published_with_all_that_is_in_it(tmp_path):
    build(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "inner" / "file").read_text() == "content"
    assert names(tmp_path / "new") == ["folder"]


def test_an_empty_folder_may_be_there(tmp_path):
    (tmp_path / "folder").mkdir()
    build(tmp_path / "folder")
    assert names(tmp_path / "folder") == ["inner"]


def test_every_file_is_synced_before_the_folder_is_renamed(tmp_path, synced):
    partial = build(tmp_path / "folder")
    inside = {str(partial), f"{partial}/inner", f"{partial}/inner/file"}
    assert set(synced[:-1]) == inside
    assert synced[-1] == str(tmp_path)


def test_a_folder_that_another_process_published_first_stays(tmp_path):
    build(tmp_path / "folder")
    before = (tmp_path / "folder").stat().st_ino
    partial = build(tmp_path / "folder", taken=lambda: True)
    assert (tmp_path / "folder").stat().st_ino == before
    assert partial.is_dir()
    with pytest.raises(OSError, match="not empty"):
        build(tmp_path / "folder")


def test_leftovers_of_a_file_are_removed_when_it_is_written_a_day_later(tmp_path):
    long_ago = time.time() - 100_000
    for name in (".file.1.partial", ".file.2.partial", ".other.1.partial"):
        (tmp_path / name).touch()
        if name != ".file.2.partial":
            os.utime(tmp_path / name, (long_ago, long_ago))
    write(tmp_path / "file", "new")
    assert names(tmp_path) == [".file.2.partial", ".other.1.partial", "file"]


def test_a_folder_is_a_leftover_only_if_nothing_in_it_changed_for_a_day(tmp_path):
    long_ago = time.time() - 100_000
    for name in ("old", "young"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").touch()
    for path in (*tmp_path.rglob("*"), *tmp_path.iterdir()):
        if path != tmp_path / "young" / "deep" / "file":
            os.utime(path, (long_ago, long_ago))
    atomic.sweep(tmp_path.iterdir())
    assert names(tmp_path) == ["young"]


def test_a_leftover_that_is_gone_meanwhile_is_no_error(tmp_path):
    atomic.sweep([tmp_path / "gone.partial"])
