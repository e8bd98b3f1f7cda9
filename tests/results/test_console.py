import io
import logging
from pathlib import Path

import numpy as np
import pytest

from jaxval.records import Checkpoint, Failure, SelectBy, Standing, Validation
from jaxval.results.console import Console, progress
from jaxval.run.leaderboard import Leaderboard


def validation(step, rr, recall, *, dataset="dev", series="s", passages=1500, standing=None):
    return Validation(
        checkpoint=Checkpoint(step, str(step), step, Path(f"/run/{step}")),
        dataset=dataset,
        series=series,
        params_at="params",
        passages=passages,
        queries=2,
        per_query={"RR@10": np.array([rr, rr]), "R@100": np.array([0.0, 2 * recall])},
        seconds={"restore": 0.5, "passages": 2.0, "search": 1.0},
        standing=standing,
    )


BY_RR = SelectBy("dev", "s", "RR@10")


def printed(past, *new, datasets=None, select_by=BY_RR):
    out = io.StringIO()
    console = Console(datasets or {"s": "dev"}, ["RR@10", "R@100"], select_by, out)
    board = Leaderboard(select_by)
    console.begin([board.add(row) for row in past], [])
    for row in new:
        if isinstance(row, Failure):
            console.fail(row)
        else:
            console.record(board.add(row))
    console.end()
    return out.getvalue().splitlines()


def table(past, *new, datasets=None, select_by=BY_RR):
    legend, *lines = printed(past, *new, datasets=datasets, select_by=select_by)
    direction = " (lower is better)" if select_by.lower_is_better else ""
    assert legend.startswith(f"  * best so far by RR@10{direction}; ")
    return lines


def test_one_row_for_each_checkpoint_with_its_change_against_the_best_so_far():
    lines = table(
        [], validation(10, 0.25, 0.5), validation(20, 0.5, 0.25), validation(30, 0.375, 0.625)
    )
    assert lines == [
        "    step   set          RR@10             R@100             passages/s  seconds",
        "      10*  dev          0.2500            0.5000                   750      3.5",
        "      20*  dev          0.5000 +0.2500    0.2500 -0.2500           750      3.5",
        "      30   dev          0.3750 -0.1250    0.6250 +0.3750           750      3.5",
        "best on dev: step 20, RR@10 0.5000"
        "  (/run/20, deleted by its trainer; see `keep_best`)",
    ]


def test_a_significant_change_has_a_mark_and_the_best_an_interval():
    standing = Standing({"RR@10": (0.25, 0.75)}, 10, {"RR@10": 0.04, "R@100": 0.05})
    lines = table([validation(10, 0.25, 0.5)], validation(20, 0.5, 0.5, standing=standing))
    assert lines[2].split()[2:6] == ["0.5000", "+0.2500†", "0.5000", "+0.0000"]
    assert lines[-1].startswith("best on dev: step 20, RR@10 0.5000 [0.2500, 0.7500]  (")


def test_lower_is_better():
    lower = SelectBy("dev", "s", "RR@10", lower_is_better=True)
    new = [validation(10, 0.5, 0.5), validation(20, 0.25, 0.5), validation(30, 0.375, 0.5)]
    lines = table([], *new, select_by=lower)
    assert [line.split()[0] for line in lines[1:4]] == ["10*", "20*", "30"]
    assert lines[-1].startswith("best on dev: step 20, RR@10 0.2500")


def test_continues_from_the_ledger():
    lines = table([validation(10, 0.5, 0.5)], validation(20, 0.25, 0.5))
    assert lines[1].split()[:3] == ["10*", "dev", "0.5000"]
    assert lines[2].split()[:4] == ["20", "dev", "0.2500", "-0.2500"]
    assert lines[-1].startswith("best on dev: step 10,")


def test_other_series_are_neither_printed_nor_compared():
    failure = Failure(Checkpoint(3, "3", 1, Path("/run/3")), "old", "corrupt", "it is cut")
    past = [validation(10, 0.9, 0.9, series="old")]
    lines = table(past, validation(20, 0.25, 0.5), failure)
    assert lines[1].split()[:4] == ["20*", "dev", "0.2500", "0.5000"]
    assert len(lines) == 3


def test_each_set_is_compared_with_itself():
    lines = table(
        [],
        validation(10, 0.5, 0.5, dataset="a"),
        validation(10, 0.25, 0.5, dataset="b", series="t"),
        validation(20, 0.375, 0.5, dataset="b", series="t"),
        datasets={"s": "a", "t": "b"},
    )
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["10*", "a"],
        ["10*", "b"],
        ["20*", "b"],
    ]
    assert "+0.1250" in lines[3]
    assert [line.split(",")[0] for line in lines[4:]] == [
        "best on a: step 10",
        "best on b: step 20",
    ]


def test_of_equal_values_the_first_is_best():
    lines = table([], validation(10, 0.5, 0.5), validation(20, 0.5, 0.5))
    assert lines[2].split()[:4] == ["20", "dev", "0.5000", "+0.0000"]
    assert lines[-1].startswith("best on dev: step 10,")


def test_the_header_comes_with_the_first_row():
    assert printed([]) == []
    failure = Failure(Checkpoint(3, "3", 1, Path("/run/3")), "s", "corrupt", "it is cut")
    header, row = table([], failure)
    assert header.startswith("    step   set")
    assert row == "       3  corrupt: it is cut"


LONG = "nDCG(dcg='exp-log2',gains={0:1,1:2})@1000"


@pytest.mark.parametrize("columns", ["20", "200"])
def test_long_names_and_values_stay_apart_on_any_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    dataset = "a-validation-set-with-a-long-name"
    row = validation(10, 1.0, 1.0, dataset=dataset)
    row.per_query[LONG] = np.array([12345.0, 12346.0])
    out = io.StringIO()
    console = Console({"s": dataset}, [LONG, "RR@10"], BY_RR, out)
    board = Leaderboard(BY_RR)
    console.begin([board.add(row)], [])
    after = validation(20, 0.5, 1.0, dataset=dataset)
    after.per_query[LONG] = np.array([2345.0, 2346.0])
    console.record(board.add(after))
    _, header, first, second = out.getvalue().splitlines()
    assert header.split() == ["step", "set", LONG, "RR@10", "passages/s", "seconds"]
    assert first.split() == ["10*", dataset, "12345.5000", "1.0000", "750", "3.5"]
    changed = ["2345.5000", "-10000.0000", "0.5000", "-0.5000"]
    assert second.split() == ["20", dataset, *changed, "750", "3.5"]
    for name in (dataset, LONG, "RR@10"):
        start = header.find(name) if name in header else first.find(name)
        assert header[start - 2 : start] == first[start - 2 : start] == "  "
    assert len(header) == len(first) == len(second)


def test_progress_outside_a_terminal_is_silent_for_short_work(caplog):
    caplog.set_level(logging.INFO, logger="jaxval")
    with progress("encoding", 10) as bar:
        bar.update(10)
    assert caplog.text == ""
