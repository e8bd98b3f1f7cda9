import json
from pathlib import Path

import numpy as np

from jaxval.records import Checkpoint, Validation
from jaxval.results.jsonl import JsonLines


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


def test_a_line_a_validation(tmp_path):
    path = tmp_path / "metrics.jsonl"
    mirror = JsonLines(path)
    mirror.begin([], [])
    assert path.read_text() == ""
    mirror.record(validation(10))
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


def test_a_line_stands_in_the_file_at_once(tmp_path):
    mirror = JsonLines(tmp_path / "m.jsonl")
    mirror.begin([], [])
    for step in (1, 2, 3):
        mirror.record(validation(step))
        assert [each["step"] for each in objects(tmp_path / "m.jsonl")][-1] == step


def test_means_are_written_in_full(tmp_path):
    mirror = JsonLines(tmp_path / "m.jsonl")
    mirror.begin([validation(1, 1 / 3)], [])
    assert (
        objects(tmp_path / "m.jsonl")[0]["measures"]["RR@10"]
        == validation(1, 1 / 3).measures["RR@10"]
    )


def test_a_lost_and_a_half_written_line_come_back_at_the_next_start(tmp_path):
    path = tmp_path / "m.jsonl"
    mirror = JsonLines(path)
    mirror.begin([], [])
    for step in (1, 2):
        mirror.record(validation(step))
    path.write_text(path.read_text()[:-30])  # killed in the second; and the third is lost
    held = [validation(step) for step in (1, 2, 3)]
    again = JsonLines(path)
    again.begin(held, [])
    again.record(validation(4))
    assert [each["step"] for each in objects(path)] == [1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == [path]
