import dataclasses
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.errors import UserError
from jaxval.records import Checkpoint, Failure, Standing, Validation
from jaxval.results.ledger import Ledger

FIRST = Checkpoint(step=10, name="10", commit_ns=1_700_000_000_123_456_789, path=Path("/c/10"))
SETTINGS = {"dataset": "dev", "depth": 100}


def validation(checkpoint=FIRST, series="s1", values=(1.0, 0.5), **changes):
    row = Validation(
        checkpoint=checkpoint,
        dataset={"s1": "dev", "s2": "other"}[series],
        series=series,
        params_at="default/params",
        passages=3,
        queries=len(values),
        per_query={"RR@10": np.array(values), "AP": np.array(values) / 3},
        seconds={"restore": 0.1, "passages": 1 / 3},
        standing=Standing(
            intervals={"RR@10": (0.1, 1 / 3), "AP": (0.0, 1.0)},
            against=None if checkpoint is FIRST else FIRST.step,
            p_values={} if checkpoint is FIRST else {"AP": 1 / 7},
        ),
    )
    return dataclasses.replace(row, **changes)


def saved_again(checkpoint, commit_ns):
    return dataclasses.replace(checkpoint, commit_ns=commit_ns)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    opened = Ledger(path)
    opened.open_series("s1", "dev", SETTINGS, ["q1", "q2"])
    opened.open_series("s2", "other", SETTINGS, ["q3", "q4"])
    yield opened
    opened.close()


def count(path, table):
    with sqlite3.connect(path) as db:
        return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def same(first, second):
    """Whether two validations are equal to the last bit."""
    without_arrays = [
        dataclasses.replace(row, per_query={}, checkpoint=None) for row in (first, second)
    ]
    return (
        without_arrays[0] == without_arrays[1]
        and first.checkpoint.identity == second.checkpoint.identity
        and first.checkpoint.step == second.checkpoint.step
        and str(first.checkpoint.path) == str(second.checkpoint.path)
        and list(first.per_query) == list(second.per_query)
        and all(
            values.tobytes() == second.per_query[name].tobytes()
            for name, values in first.per_query.items()
        )
    )


def test_a_committed_validation_is_read_after_reopening(ledger, path):
    ledger.commit(validation())
    assert ledger.holds(FIRST, "s1")
    ledger.close()
    reopened = Ledger(path)
    assert reopened.holds(FIRST, "s1")
    (read,) = reopened.validations()
    assert same(read, validation())
    assert read.measures == {"RR@10": 0.75, "AP": 0.25}
    assert reopened.query_ids("s1") == ["q1", "q2"]
    reopened.close()


def test_name_and_commit_time_identify_a_checkpoint(ledger):
    ledger.commit(validation())
    assert not ledger.holds(saved_again(FIRST, 5), "s1")
    assert not ledger.holds(dataclasses.replace(FIRST, name="checkpoint_10"), "s1")
    assert not ledger.holds(FIRST, "s2")
    assert ledger.holds(dataclasses.replace(FIRST, path=Path("/moved"), pin=Path("/p")), "s1")


def test_a_step_saved_again_and_another_series_have_their_own_rows(ledger):
    ledger.commit(validation())
    ledger.commit(validation(saved_again(FIRST, 5)))
    ledger.commit(validation(series="s2"))
    assert len(ledger.validations()) == 3
    assert ledger.holds(saved_again(FIRST, 5), "s1")
    assert ledger.holds(FIRST, "s2")


def test_a_second_result_is_refused_and_the_first_stays(ledger):
    ledger.commit(validation(values=(1.0, 0.5)))
    with pytest.raises(sqlite3.IntegrityError):
        ledger.commit(validation(values=(0.0, 0.0)))
    (read,) = ledger.validations()
    assert read.per_query["RR@10"].tolist() == [1.0, 0.5]


class Broken(dict):
    """Per-query values that fail after the first measure."""

    def items(self):
        yield "RR@10", np.ones(2)
        raise OSError("half-way")


def test_a_commit_that_fails_leaves_no_row(ledger, path):
    with pytest.raises(OSError, match="half-way"):
        ledger.commit(validation(per_query=Broken()))
    assert not ledger.holds(FIRST, "s1")
    assert ledger.validations() == []
    assert (count(path, "validation"), count(path, "measure")) == (0, 0)
    ledger.commit(validation())
    assert (count(path, "validation"), count(path, "measure")) == (1, 2)


def test_an_undefined_value_of_a_query_is_stored(ledger, path):
    undefined = {"RR@10": np.ones(2), "AP": np.array([np.nan, 1])}
    ledger.commit(validation(per_query=undefined))
    (read,) = ledger.validations()
    np.testing.assert_array_equal(read.per_query["AP"], undefined["AP"])
    assert np.isnan(read.measures["AP"])
    assert read.measures["RR@10"] == 1


def test_values_that_cannot_be_written_leave_no_row(ledger, path):
    broken = {"RR@10": np.ones(2), "AP": np.array(["not", "numbers"])}
    with pytest.raises(TypeError):
        ledger.commit(validation(per_query=broken))
    assert (count(path, "validation"), count(path, "measure")) == (0, 0)


def test_a_series_must_be_opened_first(path):
    with pytest.raises(sqlite3.IntegrityError):
        Ledger(path).commit(validation())


def test_a_series_may_be_opened_again(ledger, path):
    ledger.open_series("s1", "dev", SETTINGS, ["q1", "q2"])
    assert count(path, "series") == 2
    assert ledger.query_ids("s2") == ["q3", "q4"]


def test_validations_are_in_the_order_of_their_commits(ledger):
    steps = [30, 10, 20]
    for step in steps:
        ledger.commit(validation(Checkpoint(step, str(step), step, Path("/c"))))
    ledger.commit(validation(series="s2"))
    assert [v.checkpoint.step for v in ledger.validations()] == [30, 10, 20, 10]
    assert [v.dataset for v in ledger.validations()] == ["dev", "dev", "dev", "other"]


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=9),
    st.dictionaries(st.text(max_size=5), st.floats(0, 1e9), max_size=3),
    st.integers(0, 2**63 - 1),
)
def test_values_are_read_to_the_last_bit(tmp_path_factory, values, seconds, commit_ns):
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "l.sqlite")
    ledger.open_series("s1", "dev", SETTINGS, ["q"] * len(values))
    written = validation(saved_again(FIRST, commit_ns), values=values, seconds=seconds)
    ledger.commit(written)
    (read,) = ledger.validations()
    ledger.close()
    assert same(read, written)
    assert read.measures == written.measures


def test_an_empty_file_becomes_a_ledger(path):
    path.parent.mkdir()
    path.touch()
    ledger = Ledger(path)
    assert ledger.validations() == []
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] >= 1
    ledger.close()


def test_a_ledger_of_a_newer_version_is_refused_and_unchanged(path):
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="written by a newer jaxval"):
        Ledger(path)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 99


def test_two_processes_may_open_a_ledger(ledger, path):
    other = Ledger(path)
    ledger.commit(validation())
    assert other.holds(FIRST, "s1")
    with pytest.raises(sqlite3.IntegrityError):
        other.commit(validation())
    other.close()


def test_failures_are_reopened_if_the_checkpoint_has_no_result_elsewhere(ledger):
    second, third, gone = (
        dataclasses.replace(FIRST, name=str(step), step=step) for step in (20, 30, 40)
    )
    ledger.commit(validation(), [Failure(FIRST, "s2", "screened", "")])
    others = [(second, "screened"), (third, "corrupt"), (gone, "screened")]
    ledger.fail([Failure(checkpoint, "s2", reason, "") for checkpoint, reason in others])
    ledger.fail([Failure(second, "s1", "screened", "")])
    among = {checkpoint.identity for checkpoint in (FIRST, second, third)}
    assert ledger.reopen("screened", "s2", "s1", among) == 1
    left = [(row.checkpoint.step, row.series) for row in ledger.failures()]
    assert left == [(10, "s2"), (30, "s2"), (40, "s2"), (20, "s1")]
    assert ledger.reopen("screened", "s2", "s1", among) == 0


def test_settings_are_stored_as_json(ledger, path):
    settings = {"dataset": "dev", "depth": 100, "texts": {"prefix": None}, "measures": ["AP"]}
    ledger.open_series("s3", "third", settings, [])
    with sqlite3.connect(path) as db:
        (stored,) = db.execute("SELECT settings FROM series WHERE digest = 's3'").fetchone()
    assert json.loads(stored) == settings


def test_settings_that_json_cannot_hold_are_refused(ledger, path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        ledger.open_series("s3", "third", {"checkpoint": FIRST}, [])
    assert count(path, "series") == 2
