import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxval.records import Checkpoint, Validation
from jaxval.results.tensorboard import TensorBoard


def validation(step, value, *, dataset="dev", series="0123456789"):
    return Validation(
        checkpoint=Checkpoint(step, str(step), step, Path("/run")),
        dataset=dataset,
        series=series,
        params_at="params",
        passages=100,
        queries=1,
        per_query={"RR@10": np.array([value]), "P(rel=2)@5": np.array([value / 2])},
        seconds={"passages": 4.0},
    )


def events(folder):
    """Every event of a folder: a record is its length, a checksum, itself, a checksum."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def points(folder):
    """What is shown as the curve's name -> its (step, value)s."""
    found = {}
    for event in events(folder):
        for value in event.summary.value:
            name = value.metadata.display_name or value.tag
            found.setdefault(name, []).append((event.step, value.simple_value))
    return found


def test_measures_stand_at_their_training_step(tmp_path):
    mirror = TensorBoard(tmp_path / "tb")
    mirror.begin([], [])
    mirror.record(validation(1000, 0.5))
    mirror.record(validation(2500, 0.75))
    mirror.end()
    assert points(tmp_path / "tb" / "dev" / "01234567") == {
        "RR@10": [(1000, 0.5), (2500, 0.75)],
        "P(rel=2)@5": [(1000, 0.25), (2500, 0.375)],
        "passages_per_second": [(1000, 25.0), (2500, 25.0)],
    }


def test_sets_and_series_are_runs_of_their_own(tmp_path):
    mirror = TensorBoard(tmp_path)
    mirror.begin([validation(1, 0.5, series="aaaaaaaaaa")], [])
    mirror.record(validation(1, 0.25, series="bbbbbbbbbb"))
    mirror.record(validation(1, 0.125, dataset="other", series="cccccccccc"))
    mirror.end()
    assert points(tmp_path / "dev" / "aaaaaaaa")["RR@10"] == [(1, 0.5)]
    assert points(tmp_path / "dev" / "bbbbbbbb")["RR@10"] == [(1, 0.25)]
    assert points(tmp_path / "other" / "cccccccc")["RR@10"] == [(1, 0.125)]


def test_a_new_start_has_each_point_once(tmp_path):
    first = TensorBoard(tmp_path / "tb")
    first.begin([], [])
    first.record(validation(1, 0.5))
    first.end()
    (written,) = (tmp_path / "tb" / "dev" / "01234567").iterdir()
    written.rename(written.with_name("events.out.tfevents.1.earlier"))
    second = TensorBoard(tmp_path / "tb")
    second.begin([validation(1, 0.5), validation(2, 0.25)], [])
    second.end()
    assert points(tmp_path / "tb" / "dev" / "01234567")["RR@10"] == [(1, 0.5), (2, 0.25)]


def test_nothing_beside_its_directory_is_touched(tmp_path):
    (tmp_path / "ledger.sqlite").touch()
    TensorBoard(tmp_path / "tb").begin([], [])
    assert (tmp_path / "ledger.sqlite").exists()


@pytest.mark.parametrize("step", [0, 2**40])
def test_steps_of_any_size(tmp_path, step):
    mirror = TensorBoard(tmp_path)
    mirror.begin([validation(step, 0.5)], [])
    mirror.end()
    assert points(tmp_path / "dev" / "01234567")["RR@10"] == [(step, 0.5)]
