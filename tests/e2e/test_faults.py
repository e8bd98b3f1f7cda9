"""Faults that need processes: read-only directories, two runs at once, no hard links."""

import json
import os
import shutil
import time

import pytest

from tests.e2e.app import App
from tests.e2e.place import METADATA, restamp, tower_tree, until
from tests.e2e.world import table

NO_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
"""Runs as root without its privileges: files' modes and owners apply."""


@pytest.fixture
def app(tmp_path):
    return App(tmp_path)


@pytest.fixture
def launched(app):
    """Starts the app, and kills what still runs after the test."""
    processes = []

    def launch(*extra, **kwargs):
        processes.append(app.launch(*extra, **kwargs))
        return processes[-1]

    yield launch
    for process in processes:
        process.kill()
        process.wait()


def test_a_read_only_trainer_directory(app, launched):
    """The trainer also writes slowly, saves steps again, and sets its clock back."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may write anywhere without setpriv")
    app.put(1)
    before = sorted(app.checkpoints.rglob("*"))
    for path in [app.checkpoints, *app.checkpoints.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    run = launched(prefix=NO_RIGHTS if os.geteuid() == 0 else ())
    until(lambda: app.steps() == [1], run)
    assert sorted(app.checkpoints.rglob("*")) == before
    for path in [app.checkpoints, *app.checkpoints.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)

    # A second run in the same output directory is refused.
    assert f"in use by process {run.pid} on " in app.refused()
    assert run.poll() is None

    commit_slowly(app, run, 2, meanwhile=3)
    until(lambda: app.steps() == [1, 3, 2], run)

    app.put(3)
    until(lambda: app.steps() == [1, 3, 2, 3], run)
    yesterday = time.time_ns() - 24 * 3600 * 10**9
    app.put(3, spoil=lambda path: restamp(path, yesterday))
    until(lambda: app.steps() == [1, 3, 2, 3, 3], run)
    app.complete()
    assert run.wait(30) == 0, app.log
    app.check(1, 3, 2, 3, 3)
    (stamps,) = app.query("SELECT count(DISTINCT commit_ns) FROM validation WHERE step = 3")
    assert stamps == (3,)


def commit_slowly(app, run, step, meanwhile):
    """Writes a checkpoint file by file under its final name, and its metadata's commit last."""
    source = app.stage(step, tower_tree(table(step)))
    target = app.checkpoints / str(step)
    target.mkdir()
    committed = json.loads((source / METADATA).read_text())["commit_timestamp_nsecs"]
    restamp(source, None)
    shutil.copy(source / METADATA, target)
    files = [path for path in source.rglob("*") if path.is_file() and path.name != METADATA]
    for path in sorted(files):
        if path.name == "commit_success.txt":
            continue
        part = target / path.relative_to(source)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(path.read_bytes()[:30])
        time.sleep(0.02)
        part.write_bytes(path.read_bytes())
    app.put(meanwhile)
    until(lambda: meanwhile in app.steps(), run)
    assert step not in app.steps() + app.steps("failure")
    restamp(target, committed)


def test_without_hard_links_the_run_goes_on_while_checkpoints_vanish(app, launched, other_disk):
    app.put(1)
    run = launched(pin_dir=other_disk / "pins")
    until(lambda: "checkpoints cannot be pinned" in app.log, run)
    until(lambda: app.steps() == [1], run)
    for step in range(2, 12):
        app.put(step)
        app.delete(step - 1)
    app.complete()
    assert run.wait(60) == 0, app.log
    assert "Traceback" not in app.log
    app.check(*app.steps())
    failures = app.failures()
    assert not set(app.steps()) & set(failures)
    assert app.steps() == sorted(app.steps())
    assert {1, 11} <= set(app.steps())
    # Which of the others vanish before they are read is a matter of time.
    for reason, message in failures.values():
        assert reason == "vanished"
        assert "(it was not pinned: " in message
