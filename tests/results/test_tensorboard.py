from pathlib import Path

import numpy as np
import pytest

from jaxval.records import Checkpoint, Ranked, Validation
from jaxval.results.tensorboard import TensorBoard
from tests.results.events import points


def ranked(step, value, *, dataset="dev", series="0123456789"):
    validation = Validation(
        checkpoint=Checkpoint(step, str(step), step, Path("/run")),
        dataset=dataset,
        series=series,
        params_at="params",
        passages=100,
        queries=1,
        per_query={"RR@10": np.array([value]), "P(rel=2)@5": np.array([value / 2])},
        seconds={"passages": 4.0},
    )
    return Ranked(validation, best_before=None, is_best=False)


def test_each_measure_has_a_point_at_its_training_step(tmp_path):
    mirror = TensorBoard(tmp_path / "tb")
    mirror.begin([], [])
    mirror.record(ranked(1000, 0.5))
    mirror.record(ranked(2500, 0.75))
    mirror.end()
    assert points(tmp_path / "tb" / "dev" / "01234567") == {
        "RR@10": [(1000, 0.5), (2500, 0.75)],
        "P(rel=2)@5": [(1000, 0.25), (2500, 0.375)],
        "passages_per_second": [(1000, 25.0), (2500, 25.0)],
    }


def test_each_set_and_series_is_a_run(tmp_path):
    mirror = TensorBoard(tmp_path)
    mirror.begin([ranked(1, 0.5, series="aaaaaaaaaa")], [])
    mirror.record(ranked(1, 0.25, series="bbbbbbbbbb"))
    mirror.record(ranked(1, 0.125, dataset="other", series="cccccccccc"))
    mirror.end()
    assert points(tmp_path / "dev" / "aaaaaaaa")["RR@10"] == [(1, 0.5)]
    assert points(tmp_path / "dev" / "bbbbbbbb")["RR@10"] == [(1, 0.25)]
    assert points(tmp_path / "other" / "cccccccc")["RR@10"] == [(1, 0.125)]


def test_a_restart_writes_each_point_once(tmp_path):
    first = TensorBoard(tmp_path / "tb")
    first.begin([], [])
    first.record(ranked(1, 0.5))
    first.end()
    (written,) = (tmp_path / "tb" / "dev" / "01234567").iterdir()
    written.rename(written.with_name("events.out.tfevents.1.earlier"))
    second = TensorBoard(tmp_path / "tb")
    second.begin([ranked(1, 0.5), ranked(2, 0.25)], [])
    second.end()
    assert points(tmp_path / "tb" / "dev" / "01234567")["RR@10"] == [(1, 0.5), (2, 0.25)]


def test_no_other_file_is_touched(tmp_path):
    (tmp_path / "ledger.sqlite").touch()
    TensorBoard(tmp_path / "tb").begin([], [])
    assert (tmp_path / "ledger.sqlite").exists()


@pytest.mark.parametrize("step", [0, 2**40])
def test_steps_of_any_size(tmp_path, step):
    mirror = TensorBoard(tmp_path)
    mirror.begin([ranked(step, 0.5)], [])
    mirror.end()
    assert points(tmp_path / "dev" / "01234567")["RR@10"] == [(step, 0.5)]
