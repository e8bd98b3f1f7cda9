"""Tests of the demo's trainer, as a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxval.demo import task

COMMIT_TIME = "commit_timestamp_nsecs"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    pairs = [
        task.Pair(f"m.f{n}", "m", f"What does function {n} do?", f"It returns the number {n}.")
        for n in range(12)
    ]
    task.write(folder, pairs, pairs[:2], pairs[2:])
    task.write_tokenizer(folder, [f"{p.query} {p.passage}" for p in pairs], vocabulary=100)
    return folder


def test_trains_and_keeps_the_last_three(built, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    command = [sys.executable, "-m", "jaxval.demo.trainer", f"--data={built}"]
    command += [f"--tokenizer={built}", f"--checkpoint_dir={checkpoints}"]
    command += ["--steps=8", "--save_every=2", "--batch=4", "--query_len=8", "--passage_len=8"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    saves = [line for line in done.stdout.splitlines() if "saving" in line]
    assert [line.split(":")[0] for line in saves] == [f"step {n}" for n in (0, 2, 4, 6, 8)]
    assert {path.name for path in checkpoints.iterdir()} == {"4", "6", "8", "train_complete"}
    for step in ("4", "6", "8"):
        assert json.loads((checkpoints / step / "_CHECKPOINT_METADATA").read_text())[
            COMMIT_TIME
        ]
