"""A run's results are read while they are written, without a lock and without a new file."""

import multiprocessing
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

import jaxval
from jaxval import signals
from jaxval.errors import UserError
from jaxval.records import Checkpoint, Failure, Standing, Validation
from jaxval.results import reader
from jaxval.results.ledger import Ledger

QUERIES = ["q0", "q1", "q2", "q3"]
VALUES = {10: [0.0, 0.5, 0.5, 1.0], 20: [1.0, 0.5, 1.0, 1.0], 30: [1.0, 1.0, 0.5, 1.0]}


def validation(step, values, series="s1", dataset="dev", measures=("RR@10",)):
    per_query = {name: np.array(values) for name in measures}
    intervals = {name: (np.min(values), np.max(values)) for name in measures}
    standing = Standing(intervals, None if step == 10 else 10, dict.fromkeys(measures, 0.25))
    return Validation(
        checkpoint=Checkpoint(step, str(step), step * 1000, f"/ckpt/{step}"),
        dataset=dataset,
        series=series,
        params_at="params",
        passages=7,
        queries=len(values),
        per_query=per_query,
        seconds={"restore": 0.25, "passages": 2.0},
        standing=standing,
    )


@pytest.fixture
def output(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.open_series("s1", "dev", {"dataset": "dev", "depth": 10}, QUERIES)
    for step, values in VALUES.items():
        ledger.commit(validation(step, values))
    ledger.close()
    return tmp_path


def more(output, series, dataset, rows, **keywords):
    ledger = Ledger(output / "ledger.sqlite")
    ledger.open_series(series, dataset, {"dataset": dataset}, QUERIES)
    for step, values in rows.items():
        ledger.commit(validation(step, values, series, dataset, **keywords))
    ledger.close()


def test_results_have_means_intervals_and_no_per_query_values(output):
    results = jaxval.open_run(output).results
    assert [result.step for result in results] == [10, 20, 30]
    assert [result.measures["RR@10"] for result in results] == [0.5, 0.875, 0.875]
    assert results[1].intervals == {"RR@10": (0.5, 1.0)}
    assert results[1].against == 10
    assert results[1].p_values == {"RR@10": 0.25}
    assert results[0].per_query == {}
    assert results[0].seconds["passages"] == 2.0


def test_per_query_values_are_read_only_when_needed(output, monkeypatch):
    run = jaxval.open_run(output)
    questions = []
    monkeypatch.setattr(
        reader.LedgerReader,
        "_query",
        lambda self, question, ask=reader.LedgerReader._query: ask(
            self, lambda db: (db.set_trace_callback(questions.append), question(db))[1]
        ),
    )
    assert len(run.results) == 3
    assert run.best().step == 20
    assert not [sql for sql in questions if "per_query" in sql]
    run.compare(10, 20)
    assert [sql for sql in questions if "per_query" in sql]


def test_of_equals_the_earlier_is_the_best(output):
    assert jaxval.open_run(output).best().step == 20


def test_the_best_is_by_the_set_and_the_measure_that_the_run_selects_by(output):
    other = {10: [3.0, 3.0, 3.0, 3.0], 20: [4.0, 4.0, 4.0, 4.0]}
    more(output, "s2", "test", other, measures=("RR@10", "AvgRank"))
    signals.write(output, signals.State(select_by="test:AvgRank", lower_is_better=True))
    run = jaxval.open_run(output)
    best = run.best()
    assert (best.dataset, best.step) == ("test", 10)
    assert run.best(measure="RR@10").step == 20
    assert run.best("dev").step == 20
    assert run.datasets == ["dev", "test"]


def test_only_the_latest_series_of_a_set_counts(output):
    more(output, "s9", "dev", {40: [0.25, 0.25, 0.25, 0.25]})
    run = jaxval.open_run(output)
    assert [result.step for result in run.results] == [40]
    assert run.settings() == {"dataset": "dev"}


def test_to_pandas_has_a_row_for_each_checkpoint_and_set(output):
    more(output, "s2", "test", {20: [1.0, 1.0, 1.0, 0.0]})
    frame = jaxval.open_run(output).to_pandas()
    assert frame["step"].tolist() == [10, 20, 30, 20]
    assert frame["dataset"].tolist() == ["dev", "dev", "dev", "test"]
    assert frame["RR@10"].tolist() == [0.5, 0.875, 0.875, 0.75]
    assert frame["RR@10 high"].tolist() == [1.0, 1.0, 1.0, 1.0]
    assert frame["seconds passages"].tolist() == [2.0] * 4


def test_per_query_has_a_row_for_each_step_and_a_column_for_each_query(output):
    frame = jaxval.open_run(output).per_query("dev", "RR@10")
    assert frame.index.tolist() == [10, 20, 30]
    assert frame.columns.tolist() == QUERIES
    assert frame.loc[20, "q2"] == 1.0
    assert frame.to_numpy().tolist() == list(VALUES.values())


def test_compare_names_the_queries_from_the_greatest_loss_to_the_greatest_gain(output):
    comparison = jaxval.open_run(output).compare(20, 30)
    difference = comparison.measures["RR@10"]
    assert (difference.first, difference.second, difference.difference) == (0.875, 0.875, 0.0)
    assert difference.p_value == 1.0
    changes = [(change.query_id, change.difference) for change in comparison.changes["RR@10"]]
    assert changes == [("q2", -0.5), ("q1", 0.5)]


def test_a_plot_has_a_curve_and_the_best_marked_for_each_set(output):
    more(output, "s2", "test", {20: [1.0, 1.0, 1.0, 0.0]})
    (axes,) = jaxval.open_run(output).plot().axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[10, 0.5], [20, 0.875], [30, 0.875]],
        [[20, 0.875]],
        [[20, 0.75]],
        [[20, 0.75]],
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.best("nowhere"), r"no result on 'nowhere' \(it has: dev\)"),
        (lambda run: run.best(measure="AP"), r"no measure 'AP' \(it has: RR@10\)"),
        (lambda run: run.compare(10, 11), r"step 11 has no result on dev \(there are: 10, 20"),
    ],
)
def test_the_error_for_a_missing_name_lists_the_existing_ones(output, call, message):
    with pytest.raises(UserError, match=message):
        call(jaxval.open_run(output))


def test_a_folder_without_a_ledger_is_one_line_and_no_file_is_made(tmp_path):
    with pytest.raises(UserError, match=r"has no ledger\.sqlite: name the output_dir of a run"):
        jaxval.open_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_one_line(tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"something else" * 1000)
    with pytest.raises(UserError, match="cannot be read as a ledger"):
        jaxval.open_run(tmp_path)


def test_a_run_without_results_has_no_best(tmp_path):
    Ledger(tmp_path / "ledger.sqlite").close()
    run = jaxval.open_run(tmp_path)
    assert (run.best(), run.results, run.failures) == (None, [], [])


def test_failures_have_a_reason_and_a_message(output):
    ledger = Ledger(output / "ledger.sqlite")
    checkpoint = Checkpoint(40, "40", 40_000, "/ckpt/40")
    ledger.fail([Failure(checkpoint, "s1", "corrupt", "a chunk is missing")])
    ledger.close()
    (failure,) = jaxval.open_run(output).failures
    assert (failure["step"], failure["reason"]) == (40, "corrupt")
    assert failure["message"] == "a chunk is missing"


def test_a_reader_in_the_middle_of_an_answer_does_not_keep_the_writer_waiting(output):
    ledger = Ledger(output / "ledger.sqlite")
    ledger._db.execute("PRAGMA busy_timeout = 0")  # a lock would be an error at once
    reading, written = threading.Event(), threading.Event()
    answers = []

    def question(db):
        steps = [row["step"] for row in db.execute("SELECT step FROM validation ORDER BY id")]
        reading.set()
        assert written.wait(60)
        return steps

    source = reader.LedgerReader(output / "ledger.sqlite")
    thread = threading.Thread(target=lambda: answers.append(source._query(question)))
    thread.start()
    assert reading.wait(60)
    ledger.commit(validation(40, VALUES[10]))
    written.set()
    thread.join()
    ledger.close()
    assert answers == [[10, 20, 30, 40]]  # asked again, for a commit came in between


def commit_steps(path, first, count):
    ledger = Ledger(path)
    for step in range(first, first + count):
        ledger.commit(validation(step, VALUES[10]))
    ledger.close()


def test_each_read_is_consistent_while_another_process_commits(output):
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=commit_steps, args=(output / "ledger.sqlite", 100, 150))
    writer.start()
    run, seen = jaxval.open_run(output), []
    while writer.is_alive():
        steps = [result.step for result in run.results]
        assert steps == [10, 20, 30, *range(100, 97 + len(steps))]
        seen.append(len(steps))
    writer.join()
    assert writer.exitcode == 0
    assert len(run.results) == 153
    assert seen == sorted(seen)


KILLED = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")  # pages are written before the commit
db.execute("BEGIN IMMEDIATE")
db.execute("DELETE FROM measure")
for n in range(2000):
    db.execute("INSERT INTO series VALUES (?, 'x', '{}', '[]', 0)", ("filler" * 50 + str(n),))
os._exit(9)
"""


def test_what_a_killed_writer_left_is_rolled_back_in_a_copy(output):
    command = [sys.executable, "-c", KILLED, str(output / "ledger.sqlite")]
    assert subprocess.run(command, check=False).returncode == 9
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert "ledger.sqlite-journal" in before
    assert [result.measures["RR@10"] for result in jaxval.open_run(output).results] == [
        0.5,
        0.875,
        0.875,
    ]
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_reading_changes_no_file(output):
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    run = jaxval.open_run(output)
    run.to_pandas(), run.per_query(), run.compare(10, 20)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    with sqlite3.connect(output / "ledger.sqlite") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
