"""`--check` from the command line."""

import pytest

from jaxval.results import lock
from tests.e2e import world
from tests.e2e.app import App
from tests.e2e.small_memory import ROOM


@pytest.fixture
def run(tmp_path):
    return App(tmp_path)


def kept(run, pattern):
    return {path: path.stat().st_mtime_ns for path in run.output.glob(pattern)}


def test_it_runs_beside_another_run_and_keeps_tokens_and_programs_for_the_next(run):
    world.save(run.checkpoints, [10, 20])
    with lock.hold(run.output):  # another jaxval is at work
        status, out, err = run.finish("--check")
    assert status == 0, err
    assert f"step 20 (2 committed): {run.checkpoints / '20'}" in out
    assert out.endswith("no problems found\n")
    assert sorted(path.name for path in run.output.iterdir()) == ["compiled", "lock", "tokens"]
    tokens, compiled = kept(run, "tokens/*/*.bin"), kept(run, "compiled/*-cache")
    assert tokens
    assert compiled
    status, out, err = run.finish()
    assert status == 0, err
    assert "2 validated" in out
    assert kept(run, "tokens/*/*.bin") == tokens
    assert kept(run, "compiled/*-cache").keys() == compiled.keys()


def test_the_files_of_an_earlier_run_stay_as_they_are(run):
    world.save(run.checkpoints, [3])
    assert run.finish()[0] == 0
    before = kept(run, "*")
    assert run.finish("--check")[0] == 0
    assert kept(run, "*") == before


def test_without_a_checkpoint_it_fails(run):
    status, out, _ = run.finish("--check")
    assert status == 2
    *rest, last = out.splitlines()
    assert last.startswith(f"error: no checkpoint is committed in {run.checkpoints}")
    assert "time per checkpoint (estimated from timed batches)" in rest
    assert not run.checkpoints.exists()


def test_invalid_settings_give_one_line(run):
    status, out, err = run.finish("--check", measures="Nonsense")
    assert (status, out) == (2, "")
    assert "jaxval: --measures: 'Nonsense'" in err


def test_too_large_batches_are_reported(run, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv(ROOM, "100")
    world.save(run.checkpoints, [3])
    status, out, _ = run.finish(
        "--check", encoder="tests.e2e.small_memory:encoder", batch_tokens=1024
    )
    assert status == 0
    (warning,) = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert "a batch of 1,024 tokens does not fit" in warning
    assert "set --batch_tokens=64" in warning
