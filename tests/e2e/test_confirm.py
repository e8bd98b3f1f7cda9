"""`--confirm=best`, killed between the sample and the whole corpus."""

import pytest

from jaxval.records import SCREENED
from tests.e2e import screening
from tests.e2e.app import App
from tests.e2e.place import until


@pytest.fixture
def app(tmp_path):
    app = App(tmp_path)
    small, app.dev = screening.write_sets(tmp_path)
    app.flags |= {"dataset": f"small:{small}", "similarity": "cosine", "confirm": "best"}
    app.flags |= {"encoder": "tests.e2e.held:encoder"}
    return app


def test_the_next_start_confirms_what_a_killed_run_has_not_confirmed(app, monkeypatch):
    hold = app.root / "hold"
    monkeypatch.setenv("HELD_BY", str(hold))
    # With one device, a batch of the whole corpus is larger than a batch of the sample.
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    hold.touch()
    screening.put(app, s1="good", s2="bad")
    dev = f"--dataset=dev:{app.dev}"
    run = app.launch(dev)
    until(lambda: app.steps() == [1], run)
    run.kill()
    run.wait()
    assert (screening.validated(app), screening.failed(app)) == ([("small", 1)], [])
    app.delete(1, 2)
    hold.unlink()
    app.complete()
    status, out, err = app.finish(dev)
    assert status == 0, err
    assert screening.validated(app) == [("small", 1), ("dev", 1), ("small", 2)]
    assert screening.failed(app) == [("dev", 2, SCREENED)]
    assert "2 validated, 0 already" in out
