import json
import os
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from flax import serialization

from jaxval.checkpoints.commit import committed, files, read_commit

STAMP = 1_700_000_000_123_456_789


def metadata(stamp):
    return json.dumps({"commit_timestamp_nsecs": stamp, "init_timestamp_nsecs": 1})


def directory(root, name, **contents):
    path = root / name
    path.mkdir()
    for file, text in contents.items():
        (path / file).write_text(text)
    return epath.Path(path)


def test_a_directory_with_a_commit_time_is_committed(tmp_path):
    checkpoint = read_commit(directory(tmp_path, "1200", _CHECKPOINT_METADATA=metadata(STAMP)))
    assert (checkpoint.step, checkpoint.name, checkpoint.commit_ns) == (1200, "1200", STAMP)
    assert checkpoint.readable == checkpoint.path


@pytest.mark.parametrize(
    "text", [metadata(None), metadata("soon"), "{}", "[]", '{"commit_timestamp_ns', ""]
)
def test_metadata_without_a_commit_time_is_not_committed(tmp_path, text):
    assert read_commit(directory(tmp_path, "7", _CHECKPOINT_METADATA=text)) is None


@pytest.mark.parametrize(
    "name", ["7.orbax-checkpoint-tmp", "7.orbax-checkpoint-tmp-3", "best", "7.partial", "x7"]
)
def test_directories_with_other_names_are_not_checkpoints(tmp_path, name):
    path = directory(tmp_path, name, _CHECKPOINT_METADATA=metadata(STAMP))
    assert read_commit(path) is None


def test_a_prefix_before_the_step_is_kept_in_the_name(tmp_path):
    path = directory(tmp_path, "checkpoint_40", _CHECKPOINT_METADATA=metadata(STAMP))
    assert (read_commit(path).step, read_commit(path).name) == (40, "checkpoint_40")


@pytest.mark.parametrize("mark", ["_METADATA", "checkpoint"])
def test_old_orbax_is_recognized_by_a_metadata_file(tmp_path, mark):
    own = directory(tmp_path, "1", **{mark: ""})
    outer = directory(tmp_path, "2")
    inner = directory(tmp_path / "2", "default", **{mark: ""})
    assert read_commit(own).commit_ns == Path(own / mark).stat().st_mtime_ns
    assert read_commit(outer).commit_ns == Path(inner / mark).stat().st_mtime_ns


@pytest.mark.parametrize("keys", [1, 20, 70_000])
def test_a_msgpack_file_is_a_checkpoint_with_the_time_of_the_file(tmp_path, keys):
    tree = {f"parameter {number}": np.float32(number) for number in range(keys)}
    path = tmp_path / "checkpoint_40"
    path.write_bytes(serialization.msgpack_serialize(tree))
    os.utime(path, ns=(1, STAMP))
    (checkpoint,) = committed(tmp_path)
    assert (checkpoint.step, checkpoint.name, checkpoint.stamped) == (
        40,
        "checkpoint_40",
        False,
    )
    assert checkpoint.commit_ns == STAMP
    assert files(path) == ["."]


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"\x82", b"{}", b"log of step 5", b"\x82\x01\x02\x03\x04"]
)
def test_other_files_with_a_number_are_not_checkpoints(tmp_path, content):
    (tmp_path / "log_5").write_bytes(content)
    assert committed(tmp_path) == []


def test_empty_missing_and_other_directories_contain_no_checkpoints(tmp_path):
    directory(tmp_path, "5")
    (tmp_path / "6").write_text("not a directory")
    assert committed(tmp_path) == []
    assert committed(tmp_path / "not there") == []


def test_checkpoints_are_in_step_order(tmp_path):
    for step in (100, 20, 3):
        directory(tmp_path, str(step), _CHECKPOINT_METADATA=metadata(STAMP + step))
    assert [checkpoint.step for checkpoint in committed(tmp_path)] == [3, 20, 100]


def test_a_step_saved_again_is_another_checkpoint(tmp_path):
    path = directory(tmp_path, "9", _CHECKPOINT_METADATA=metadata(STAMP))
    first = read_commit(path)
    (path / "_CHECKPOINT_METADATA").write_text(metadata(STAMP + 1))
    assert read_commit(path).identity != first.identity


def test_files_are_relative_to_the_directory(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("")
    (tmp_path / "d").write_text("")
    assert files(tmp_path) == ["a/b/c", "d"]
    assert files(tmp_path / "gone") == []
