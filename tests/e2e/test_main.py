"""The app as users start it: a process with real files, beside a trainer that is writing."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.e2e import world
from tests.e2e.app import ROOT, App


@pytest.fixture
def app(tmp_path):
    return App(tmp_path)


def train(app, steps, seconds):
    command = [sys.executable, "-m", "tests.e2e.world", str(app.checkpoints), str(steps)]
    return subprocess.Popen([*command, str(seconds)], cwd=ROOT, stderr=subprocess.DEVNULL)


def test_beside_a_trainer_that_keeps_two_every_step_is_validated(app):
    validator = app.start()
    trainer = train(app, steps=9, seconds=0.4)
    out, err = validator.communicate(timeout=120)
    assert (trainer.wait(), validator.returncode) == (0, 0), err
    app.check(*range(9))
    rows = app.query(
        "SELECT step, mean, per_query FROM validation JOIN measure"
        " ON validation = validation.id WHERE measure.name = 'RR@10' ORDER BY validation.id"
    )
    for step, mean, values in rows:
        assert np.frombuffer(values) == pytest.approx(world.expected(step))
        assert mean == pytest.approx(np.mean(world.expected(step)))
    best = max(range(9), key=lambda step: np.mean(world.expected(step)))
    assert f"best on tiny: step {best}," in out
    assert "9 validated" in out
    assert sorted(int(p.name) for p in app.checkpoints.iterdir() if p.is_dir()) == [7, 8]
    assert app.pins() == []


def test_a_second_start_tokenizes_and_compiles_nothing(app):
    app.put(10, 20)
    assert app.finish(idle_timeout=0.1)[0] == 0
    first = app.lines()
    stores = {path: path.stat().st_mtime_ns for path in app.output.glob("tokens/*/*.bin")}
    # Every program is kept, so a new compilation would add a file.
    compiled = set(app.output.glob("compiled/*-cache"))
    assert stores
    assert compiled
    app.put(30)
    app.complete()
    status, out, err = app.finish()
    assert status == 0, err
    assert "1 validated, 2 already in the ledger" in out
    assert app.lines()[:2] == first
    app.check(10, 20, 30)
    assert {path: path.stat().st_mtime_ns for path in stores} == stores
    assert set(app.output.glob("tokens/*/*.bin")) == set(stores)
    assert set(app.output.glob("compiled/*-cache")) == compiled


def test_a_signal_ends_it_cleanly_and_the_next_start_continues(app):
    """The paths are relative."""
    for name in ("checkpoint_dir", "output_dir"):
        app.flags[name] = os.path.relpath(app.flags[name], ROOT)
    for step, sent, status in ((3, signal.SIGINT, 130), (4, signal.SIGTERM, 143)):
        app.put(step)
        process = app.start()
        for line in iter(process.stdout.readline, ""):
            if line.split()[:2] in ([f"{step}*", "tiny"], [str(step), "tiny"]):
                break
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status
        assert "Traceback" not in err
        assert f"best on tiny: step {step}," in out  # step 4 is better than step 3
        assert "1 validated" in out
    app.check(3, 4)


def bad_line(app):
    (app.texts / "corpus.jsonl").write_text('{"_id": "p0", "text": "red"}\n{"_id": \n')


@pytest.mark.parametrize(
    ("spoil", "flags", "message"),
    [
        (bad_line, {}, "corpus.jsonl:2: "),
        (None, {"output_dir": ""}, "--output_dir is not set"),
        (None, {"devices": "gpu:one"}, "--devices=gpu:one: write cpu"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_nothing_is_validated(
    app, spoil, flags, message
):
    app.put(3)
    if spoil:
        spoil(app)
    assert message in app.refused(**flags)
    assert not (app.output / "ledger.sqlite").exists()


def test_the_traceback_within_a_plug_in_follows_the_message(app):
    app.put(3)
    status, _, err = app.finish(encoder="tests.e2e.other:broken")
    assert status == 2
    fault, place, line = err.splitlines()[-3:]
    assert fault.startswith("jaxval: --encoder=tests.e2e.other:broken: ")
    assert "no attribute" in fault
    assert place.startswith(f'  File "{ROOT / "tests/e2e/other.py"}", line ')
    assert line == '    return nn.Embed(14, 4, name="vectors")(ids)[:, self.position]'


def test_a_tracker_of_the_user_gets_every_row_and_may_fail(app):
    for step in (1, 2, 3):
        app.put(step)
    app.complete()
    path = app.root / "lines.txt"
    command = [sys.executable, "-m", "tests.e2e.own_tracker", str(path)]
    listed = [f"--{name}={value}" for name, value in app.flags.items()]
    ran = subprocess.run([*command, *listed], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    values = [np.mean(world.expected(step)) for step in (1, 2, 3)]
    assert path.read_text().splitlines() == [
        "begin 0 0",
        "record 1 True",
        f"record 3 {values[2] > max(values[:2])}",
        "end",
    ]
    assert (
        "step 2 is in the ledger, but Lines failed: RuntimeError('the service is" in ran.stderr
    )
    app.check(1, 2, 3)
