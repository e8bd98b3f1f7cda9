import json
from pathlib import Path

import numpy as np

from jaxval.records import Checkpoint, Ranked, Validation
from jaxval.results.jsonl import JsonLines


def ranked(step, value=0.5):
    return Ranked(validation(step, value), best_before=None, is_best=False)


def validation(step, value=0.5):
    return Validation(
        checkpoint=Checkpoint(step, f"checkpoint_{step}", 7, Path(f"/run/checkpoint_{step}")),
        dataset="dév",
        series="abc",
        params_at="default/params",
        passages=100,
        queries=2,
        per_query={"RR@10": np.array([0.0, 2 * value])},
        seconds={"restore": 0.25, "passages": 2.0},
    )


def objects(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_line_for_each_validation(tmp_path):
    path = tmp_path / "metrics.jsonl"
    mirror = JsonLines(path)
    mirror.begin([], [])
    assert path.read_text() == ""
    mirror.record(ranked(10))
    mirror.end()
    assert objects(path) == [
        {
            "step": 10,
            "dataset": "dév",
            "checkpoint": "/run/checkpoint_10",
            "committed_ns": 7,
            "measures": {"RR@10": 0.5},
            "seconds": {"restore": 0.25, "passages": 2.0},
            "passages": 100,
            "passages_per_second": 50.0,
            "queries": 2,
            "params_at": "default/params",
            "series": "abc",
        }
    ]


def test_a_line_is_written_at_once(tmp_path):
    mirror = JsonLines(tmp_path / "m.jsonl")
    mirror.begin([], [])
    for step in (1, 2, 3):
        mirror.record(ranked(step))
        assert [line["step"] for line in objects(tmp_path / "m.jsonl")][-1] == step


def test_means_are_written_in_full(tmp_path):
    mirror = JsonLines(tmp_path / "m.jsonl")
    mirror.begin([ranked(1, 1 / 3)], [])
    assert (
        objects(tmp_path / "m.jsonl")[0]["measures"]["RR@10"]
        == validation(1, 1 / 3).measures["RR@10"]
    )


def test_a_missing_and_a_truncated_line_are_restored_at_the_next_start(tmp_path):
    path = tmp_path / "m.jsonl"
    mirror = JsonLines(path)
    mirror.begin([], [])
    for step in (1, 2):
        mirror.record(ranked(step))
    path.write_text(path.read_text()[:-30])  # as a kill would leave the second line
    in_ledger = [ranked(step) for step in (1, 2, 3)]
    again = JsonLines(path)
    again.begin(in_ledger, [])
    again.record(ranked(4))
    assert [line["step"] for line in objects(path)] == [1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == [path]
