"""The demo's trainer, as its user starts it, and the runner that watches over it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxval.demo import __main__ as demo
from jaxval.demo import task

COMMITTED = "commit_timestamp_nsecs"


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
        assert json.loads((checkpoints / step / "_CHECKPOINT_METADATA").read_text())[COMMITTED]


def python(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code])


FOREVER = "import time; time.sleep(60)"


def test_the_validators_status_is_the_runners():
    trainer = python("")
    trainer.wait()
    assert demo.follow(trainer, python("raise SystemExit(7)")) == 7


def test_a_dead_trainer_ends_the_validator(tmp_path, monkeypatch, capsys):
    log = tmp_path / "trainer.log"
    log.write_text("it went well\nand then it did not\n")
    monkeypatch.setattr(demo, "LOG", log)
    validator = python(FOREVER)
    assert demo.follow(python("raise SystemExit(3)"), validator) == 1
    assert validator.poll() is not None
    assert "and then it did not" in capsys.readouterr().err


def test_end_interrupts():
    assert demo.end(python(FOREVER)) in (-signal.SIGINT, 1, 130)


def test_end_kills_what_does_not_listen():
    deaf = f"import signal; signal.signal(2, signal.SIG_IGN); print(flush=True); {FOREVER}"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert demo.end(process, patience=0.1) == -signal.SIGKILL
    process.stdout.close()
