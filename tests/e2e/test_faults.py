"""Faults with real damage: real processes, real files, and what the user is told."""

import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxval import signals
from jaxval.corpus import token_store
from jaxval.corpus.token_store import Recipe
from jaxval.errors import DataError
from jaxval.records import Checkpoint, Text, Validation
from jaxval.results.tensorboard import TensorBoard
from tests.e2e import world
from tests.e2e.test_main import ROOT, Run

METADATA = "_CHECKPOINT_METADATA"
NO_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
"""Root, but as bound by the files' modes and owners as anybody is."""


class Place(Run):
    """A Run whose trainer is the test: it saves, damages and deletes as it likes."""

    def stage(self, step, values=None):
        """Writes a step where nobody looks."""
        staged = self.root / "staging" / str(step)
        values = world.table(step) if values is None else values
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(staged, {"params": {"words": {"embedding": values}}}, force=True)
        return staged

    def put(self, step, values=None, *, spoil=lambda path: None):
        """Saves a step in one rename; it is spoilt before."""
        staged = self.stage(step, values)
        spoil(staged)
        self.delete(step)
        self.checkpoints.mkdir(exist_ok=True)
        return staged.rename(self.checkpoints / str(step))

    def delete(self, step):
        shutil.rmtree(self.checkpoints / str(step), ignore_errors=True)

    def complete(self):
        (self.checkpoints / "train_complete").touch()

    def launch(self, *extra, prefix=(), **flags):
        """As start, with what it says in the file log, where it can be read meanwhile."""
        listed = [f"--{name}={value}" for name, value in (self.flags | flags).items()]
        with (self.root / "log").open("w") as log:
            return subprocess.Popen(
                [*prefix, sys.executable, "-m", "jaxval.main", *listed, *extra],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self):
        return (self.root / "log").read_text()

    def steps(self, table="validation"):
        """The rows, in order; none as long as there is no such table."""
        try:
            return [step for (step,) in self.query(f"SELECT step FROM {table} ORDER BY id")]
        except sqlite3.OperationalError:
            return []

    def failures(self):
        rows = self.query("SELECT step, reason, message FROM failure")
        return {step: (reason, message) for step, reason, message in rows}

    def check(self, *steps):
        """These are the rows, in this order, each once, each with its own value, and the
        lines of metrics.jsonl are the same."""
        assert self.steps() == list(steps)
        lines = self.lines()
        assert [line["step"] for line in lines] == list(steps)
        for line in lines:
            value = np.mean(world.expected(line["step"]))
            assert line["measures"]["RR@10"] == pytest.approx(value)


def restamp(path, commit_ns):
    """Has it claim that it was committed then."""
    metadata = json.loads((path / METADATA).read_text())
    metadata["commit_timestamp_nsecs"] = commit_ns
    (path / METADATA).write_text(json.dumps(metadata))


def cut(path):
    """Truncates every data file; returns what undoes it."""
    whole = {file: file.read_bytes() for file in path.rglob("d/*") if file.is_file()}
    for file, content in whole.items():
        file.write_bytes(content[:20])
    return lambda: [file.write_bytes(content) for file, content in whole.items()]


def until(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def launched(place):
    """Starts a run, and ends what is still running after the test."""
    processes = []

    def launch(*extra, **kwargs):
        processes.append(place.launch(*extra, **kwargs))
        return processes[-1]

    yield launch
    for process in processes:
        process.kill()
        process.wait()


def test_bad_checkpoints_are_a_row_each_and_the_others_are_validated(place):
    for step in (1, 2, 5, 6):
        place.put(step)
    mend = cut(place.checkpoints / "2")
    place.put(3, np.full_like(world.table(3), np.nan))
    place.put(4, world.table(4)[:, :2])
    place.complete()

    status, out, err = place.finish(keep_best=2, patience=2)
    assert status == 1, err
    assert "Traceback" not in err
    place.check(1, 5, 6)
    assert "3 validated, 0 already in the ledger, 0 lost, 3 corrupt, 0 retried" in out
    failures = place.failures()
    reasons = {step: reason for step, (reason, _) in failures.items()}
    assert reasons == {2: "corrupt", 3: "non-finite", 4: "mismatch"}
    for step, (reason, message) in failures.items():
        assert str(place.checkpoints / str(step)) in message
        assert f"{step}  {reason}: {message}" in out
    assert list((place.output / "pins").iterdir()) == []
    told_the_trainer(place)
    kept_the_best(place)

    # Without --retry_failed they are known; and what a kill left of the mirrors is mended.
    metrics = place.output / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-200])
    shutil.rmtree(place.output / "tensorboard")
    (place.output / "signals.json").unlink()
    status, out, err = place.finish(keep_best=2, patience=2)
    assert status == 0, err
    assert "0 validated, 6 already in the ledger, 0 lost, 0 corrupt" in out
    place.check(1, 5, 6)
    assert list((place.output / "tensorboard" / "tiny").rglob("events*"))
    told_the_trainer(place)
    kept_the_best(place)

    mend()
    place.delete(3)
    status, out, err = place.finish("--retry_failed", keep_best=2)
    assert status == 1, err  # step 4 does not fit any better
    assert "1 validated, 3 already in the ledger, 0 lost, 1 corrupt" in out
    place.check(1, 5, 6, 2)
    reasons = {step: reason for step, (reason, _) in place.failures().items()}
    assert reasons == {3: "non-finite", 4: "mismatch"}  # what is gone cannot be tried again


def told_the_trainer(place):
    values = {step: np.mean(world.expected(step)) for step in (1, 5, 6)}
    best = max(values, key=values.get)
    told = signals.read(place.output)
    assert told.select_by == "tiny:RR@10"
    assert told.values == pytest.approx(values)
    assert told.failed == (2, 3, 4)
    assert (told.best.step, told.best.value) == (best, pytest.approx(values[best]))
    assert told.best.checkpoint == str(place.checkpoints / str(best))
    assert told.stop
    assert told.reason == "2 validations without a significant gain"


def kept_the_best(place):
    ranked = sorted((1, 5, 6), key=lambda step: -np.mean(world.expected(step)))
    best = place.output / "best"
    kept = {path.name.rpartition("_")[2] for path in best.iterdir()}
    assert kept == {"best", *map(str, ranked[:2])}
    assert (best / "best").readlink().name.endswith(f"_{ranked[0]}")
    everywhere = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.asarray(jax.devices()), ("data",)), jax.sharding.PartitionSpec()
    )
    table = world.table(ranked[0])
    wanted = jax.ShapeDtypeStruct(table.shape, table.dtype, sharding=everywhere)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = {"params": {"words": {"embedding": wanted}}}
        restored = checkpointer.restore((best / "best").resolve(), tree)
    np.testing.assert_array_equal(restored["params"]["words"]["embedding"], table)


def test_if_every_one_misfits_nothing_is_recorded_and_the_right_settings_take_them_up(place):
    for step in (1, 2, 3):
        place.put(step)
    place.put(4, spoil=cut)  # damage says nothing for or against the settings
    status, _, err = place.finish(encoder="tests.e2e.other:encoder")
    assert status == 2
    (fault,) = [line for line in err.splitlines() if line.startswith("jaxval: ")]
    assert "vectors/embedding [14, 4] is missing" in fault
    assert "Traceback" not in err
    assert (place.steps(), place.steps("failure")) == ([], [4])
    assert len(list((place.output / "pins").iterdir())) == 3
    for step in (1, 2, 3, 4):
        place.delete(step)
    place.complete()
    status, _, err = place.finish(order="newest")
    assert status == 0, err
    place.check(3, 2, 1)


def test_beside_a_trainer_whose_directory_it_may_only_read(place, launched):
    """And whose clock is set back, who saves steps again, and writes slowly."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may write anywhere, and setpriv is not here to take that away")
    place.put(1)
    before = sorted(place.checkpoints.rglob("*"))
    for path in [place.checkpoints, *place.checkpoints.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    run = launched(prefix=NO_RIGHTS if os.geteuid() == 0 else ())
    until(lambda: place.steps() == [1], run)
    assert sorted(place.checkpoints.rglob("*")) == before
    for path in [place.checkpoints, *place.checkpoints.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)

    status, _, err = place.finish()
    assert status == 2
    assert f"in use by process {run.pid} on " in err
    assert run.poll() is None

    commit_slowly(place, run, 2, meanwhile=3)
    until(lambda: place.steps() == [1, 3, 2], run)

    place.put(3)
    until(lambda: place.steps() == [1, 3, 2, 3], run)
    hour = 3600 * 10**9
    place.put(3, spoil=lambda path: restamp(path, time.time_ns() - 24 * hour))
    until(lambda: place.steps() == [1, 3, 2, 3, 3], run)
    place.complete()
    assert run.wait(30) == 0, place.log
    place.check(1, 3, 2, 3, 3)
    (stamps,) = place.query("SELECT count(DISTINCT commit_ns) FROM validation WHERE step = 3")
    assert stamps == (3,)


def commit_slowly(place, run, step, meanwhile):
    """As the COMMIT_FILE protocol writes: under its last name, file after file."""
    source = place.stage(step)
    target = place.checkpoints / str(step)
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
    place.put(meanwhile)
    until(lambda: meanwhile in place.steps(), run)
    assert step not in place.steps() + place.steps("failure")
    restamp(target, committed)


def test_where_links_are_refused_what_vanishes_is_recorded_and_nothing_crashes(place, launched):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == place.root.stat().st_dev:
        pytest.skip("there is no second file system here")
    pins = other / f"jaxval-test-{os.getpid()}"
    try:
        place.put(1)
        run = launched(pin_dir=pins)
        until(lambda: "checkpoints cannot be pinned" in place.log, run)
        until(lambda: place.steps() == [1], run)
        for step in range(2, 12):
            place.put(step)
            place.delete(step - 1)
        place.delete(11)
        place.complete()
        assert run.wait(60) == 0, place.log
    finally:
        shutil.rmtree(pins, ignore_errors=True)
    assert "Traceback" not in place.log
    place.check(*place.steps())
    failures = place.failures()
    assert not set(place.steps()) & set(failures)
    assert place.steps() == sorted(place.steps())
    for reason, message in failures.values():
        assert reason == "vanished"
        assert "(it was not pinned: " in message


def test_what_is_lost_at_the_pin_limit_says_so(place, launched):
    for step in (1, 2, 3, 4):
        place.put(step)
    run = launched(max_pins=1, host_checkpoints=1)
    until(lambda: place.log.count("is not pinned: 1 checkpoints are pinned already") == 3, run)
    for step in (1, 2, 3, 4):
        place.delete(step)
    place.complete()
    assert run.wait(60) == 0, place.log
    place.check(1)
    failures = place.failures()
    assert sorted(failures) == [2, 3, 4]
    for reason, message in failures.values():
        assert reason == "vanished"
        assert "1 checkpoints are pinned already, which is the limit (--max_pins)" in message
    assert "1 validated, 0 already in the ledger, 3 lost, 0 corrupt" in place.log


def test_latest_skips_what_is_older_and_the_ledger_says_so(place):
    for step in (1, 2, 3):
        place.put(step)
    place.complete()
    status, out, err = place.finish(order="latest")
    assert status == 0, err
    place.check(3)
    assert place.failures() == dict.fromkeys((1, 2), ("skipped", "step 3 was newer"))
    assert (
        "1 validated, 0 already in the ledger, 0 lost, 0 corrupt, 0 retried, 2 skipped" in out
    )
    place.put(4)
    status, out, err = place.finish(order="latest")
    assert status == 0, err
    place.check(3, 4)
    assert sorted(place.failures()) == [1, 2]
    assert "1 validated, 3 already in the ledger, 0 lost, 0 corrupt, 0 retried\n" in out
    assert signals.read(place.output).failed == (1, 2)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk, leave):
    """Takes all the room there is but for so many MiB."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        free = shutil.disk_usage(disk).free
        file.write(bytes(free - int(leave * 2**20)))
    return ballast


def test_on_a_full_disk_it_waits_and_goes_on_when_there_is_room(place, launched, small_disk):
    place.output = place.flags["output_dir"] = small_disk / "out"
    flags = {"pin_dir": place.root / "pins", "keep_best": 1, "write_run": "trec"}
    place.put(1)
    ballast = fill(small_disk, leave=0)
    status, _, err = place.finish(**flags)
    assert status == 2
    assert err.startswith(f"jaxval: --output_dir={place.output} cannot be written: ")
    assert err.count("\n") == 1

    ballast.unlink()
    run = launched(**flags)
    until(lambda: place.steps() == [1], run)
    ballast = fill(small_disk, leave=2)
    place.put(2)
    place.put(3, spoil=cut)
    until(lambda: "that are needed: waiting until there is room" in place.log, run)
    time.sleep(0.5)
    assert (place.steps(), place.steps("failure")) == ([1], [])
    assert [line["step"] for line in place.lines()] == [1]
    assert not (place.output / "runs" / "tiny" / "2.trec").exists()
    place.delete(2)
    place.put(4)
    ballast.unlink()
    until(lambda: place.steps() == [1, 2, 4], run)
    place.complete()
    assert run.wait(30) == 1, place.log
    assert place.log.count("waiting until there is room") == 1
    place.check(1, 2, 4)
    assert {step: reason for step, (reason, _) in place.failures().items()} == {3: "corrupt"}
    assert not list(place.output.rglob("*.tmp"))


def test_a_disk_that_fills_up_while_it_tokenizes_leaves_nothing_half_written(
    small_disk, tiny_tokenizer, silent
):
    """A page of memory more each time, so that another file is the first without room."""
    texts = [Text(f"d{row}", (4 + row % 26,) * (row % 40)) for row in range(1000)]
    recipe = Recipe("{title} {text}", "", 64)

    def build():
        return token_store.open_or_build(
            small_disk / "tokens", texts, "o", tiny_tokenizer, recipe, places=str, bar=silent
        )

    refused = 0
    for pages in itertools.count():
        ballast = fill(small_disk, leave=pages * 4096 / 2**20)
        try:
            store = build()
            break
        except (DataError, OSError):
            refused += 1
            assert not list((small_disk / "tokens").glob("*"))
        finally:
            ballast.unlink()
    assert refused > 3
    for bucket in store.buckets:
        of_bucket = slice(bucket.start, bucket.start + bucket.count)
        for row, ids in zip(store.rows[of_bucket], store.matrix(bucket), strict=True):
            wanted = [2, *texts[row].text, 3]
            assert ids[: len(wanted)].tolist() == wanted


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_does_not_stop_the_loop_at_its_curves(small_disk):
    curves = TensorBoard(small_disk / "tensorboard")
    curves.begin([], [])
    fill(small_disk, leave=0)
    writing = threading.Thread(
        target=lambda: [curves.record(validation(step)) for step in range(40)], daemon=True
    )
    writing.start()
    writing.join(20)
    assert not writing.is_alive()


def validation(step):
    return Validation(
        checkpoint=Checkpoint(step, str(step), step, Path(f"/c/{step}")),
        dataset="tiny",
        series="0123456789",
        params_at="params",
        passages=3,
        queries=2,
        per_query={"RR@10" * 500: np.ones(2)},
        seconds={"passages": 1.0},
    )
