import io
import logging
from pathlib import Path

import numpy as np

from jaxval.records import Checkpoint, Failure, SelectBy, Validation
from jaxval.results.console import Console, progress


def validation(step, rr, recall, *, dataset="dev", series="s", passages=1500):
    return Validation(
        checkpoint=Checkpoint(step, str(step), step, Path(f"/run/{step}")),
        dataset=dataset,
        series=series,
        params_at="params",
        passages=passages,
        queries=2,
        per_query={"RR@10": np.array([rr, rr]), "R@100": np.array([0.0, 2 * recall])},
        seconds={"restore": 0.5, "passages": 2.0, "search": 1.0},
    )


BY_RR = SelectBy("dev", "s", "RR@10")


def printed(past, *new, series=("s",), select_by=BY_RR):
    out = io.StringIO()
    console = Console(series, ["RR@10", "R@100"], select_by, out)
    console.begin(past, [])
    for each in new:
        tell = console.fail if isinstance(each, Failure) else console.record
        tell(each)
    console.end()
    return out.getvalue().splitlines()


def table(past, *new, series=("s",), select_by=BY_RR):
    legend, *lines = printed(past, *new, series=series, select_by=select_by)
    direction = " (lower is better)" if select_by.lower_is_better else ""
    assert legend.startswith(f"  * best so far by RR@10{direction}; ")
    return lines


def test_a_row_a_checkpoint_with_its_change_against_the_best_so_far():
    lines = table(
        [], validation(10, 0.25, 0.5), validation(20, 0.5, 0.25), validation(30, 0.375, 0.625)
    )
    assert lines == [
        "    step  set          RR@10             R@100             passages/s  seconds",
        "      10* dev          0.2500            0.5000                   750      3.5",
        "      20* dev          0.5000 +0.2500    0.2500 -0.2500           750      3.5",
        "      30  dev          0.3750 -0.1250    0.6250 +0.3750           750      3.5",
        "best on dev: step 20, RR@10 0.5000"
        "  (/run/20, deleted by its trainer; see --keep_best)",
    ]


def test_where_lower_is_better_the_least_leads():
    lower = SelectBy("dev", "s", "RR@10", lower_is_better=True)
    new = [validation(10, 0.5, 0.5), validation(20, 0.25, 0.5), validation(30, 0.375, 0.5)]
    lines = table([], *new, select_by=lower)
    assert [line.split()[0] for line in lines[1:4]] == ["10*", "20*", "30"]
    assert lines[-1].startswith("best on dev: step 20, RR@10 0.2500")


def test_it_goes_on_from_what_the_ledger_holds():
    lines = table([validation(10, 0.5, 0.5)], validation(20, 0.25, 0.5))
    assert lines[1].split()[:3] == ["10*", "dev", "0.5000"]
    assert lines[2].split()[:4] == ["20", "dev", "0.2500", "-0.2500"]
    assert lines[-1].startswith("best on dev: step 10,")


def test_another_series_is_not_shown_and_not_compared():
    lines = table([validation(10, 0.9, 0.9, series="old")], validation(20, 0.25, 0.5))
    assert lines[1].split()[:4] == ["20*", "dev", "0.2500", "0.5000"]
    assert len(lines) == 3


def test_sets_are_compared_each_with_itself():
    lines = table(
        [],
        validation(10, 0.5, 0.5, dataset="a"),
        validation(10, 0.25, 0.5, dataset="b", series="t"),
        validation(20, 0.375, 0.5, dataset="b", series="t"),
        series=("s", "t"),
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


def test_of_equals_the_first_is_best():
    lines = table([], validation(10, 0.5, 0.5), validation(20, 0.5, 0.5))
    assert lines[2].split()[:4] == ["20", "dev", "0.5000", "+0.0000"]
    assert lines[-1].startswith("best on dev: step 10,")


def test_the_head_comes_with_the_first_row():
    assert printed([]) == []
    failure = Failure(Checkpoint(3, "3", 1, Path("/run/3")), "s", "corrupt", "it is cut")
    head, row = table([], failure)
    assert head.startswith("    step  set")
    assert row == "       3  corrupt: it is cut"


def test_progress_off_a_terminal_is_silent_for_short_work(caplog):
    caplog.set_level(logging.INFO, logger="jaxval")
    with progress("encoding", 10) as bar:
        bar.update(10)
    assert caplog.text == ""
