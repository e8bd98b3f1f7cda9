"""One run: what it validates, in which order, when it ends, and what it writes."""

import os
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxval import signals
from jaxval.errors import MismatchError, UnreadableError, UserError
from jaxval.records import PinLimit, Ranked
from jaxval.results.trackers import default_trackers
from jaxval.run import session
from tests.e2e import world
from tests.e2e.place import cut, tower_tree
from tests.run.runner import Clock


def test_each_checkpoint_becomes_a_row_with_its_values(place):
    place.put(1, 2, 3)
    queue = place.queue()
    assert place.run(queue) == 0
    place.check(1, 2, 3)
    rows = place.query(
        "SELECT step, per_query FROM validation JOIN measure"
        " ON validation = validation.id WHERE measure.name = 'RR@10' ORDER BY validation.id"
    )
    for step, per_query in rows:
        assert np.frombuffer(per_query) == pytest.approx(world.expected(step))
    assert (queue.done_steps, queue.aside_steps) == ([1, 2, 3], [])
    best = max((1, 2, 3), key=lambda step: np.mean(world.expected(step)))
    assert f"best on tiny: step {best}," in place.out
    assert "3 validated, 0 already in the ledger, 0 lost, 0 corrupt, 0 retried\n" in place.out
    assert "parameters at params\n" in place.log
    assert "the training is complete" in place.log


def test_what_a_run_writes(place):
    place.put(3)
    assert place.run(write_run="trec", keep_best=1) == 0
    (line,) = place.lines()
    assert (line["step"], line["dataset"]) == (3, "tiny")
    assert line["checkpoint"] == str(place.checkpoints / "3")
    assert set(line["seconds"]) == {"restore", "queries", "passages", "search", "measures"}
    assert (place.output / "runs" / "tiny" / "3.trec").read_text().startswith("q0 Q0 p")
    assert list((place.output / "tensorboard" / "tiny").rglob("events*"))
    assert signals.read(place.output).best.step == 3
    named = {line.split()[0]: line.split()[-1] for line in place.out.splitlines()[-5:]}
    assert named == {
        "ledger": str(place.output / "ledger.sqlite"),
        "metrics": str(place.output / "metrics.jsonl"),
        "runs": str(place.output / "runs"),
        "best": str(place.output / "best" / "best"),
        "TensorBoard": str(place.output / "tensorboard"),
    }


def test_a_second_run_skips_what_the_ledger_holds(place):
    place.put(10, 20)
    assert place.run() == 0
    first = place.lines()
    place.delete(10)
    place.put(30)
    queue = place.queue()
    assert place.run(queue) == 0
    assert "1 validated, 1 already in the ledger" in place.out
    assert queue.done_steps == [20, 30]
    assert place.lines()[:2] == first
    place.check(10, 20, 30)


def test_a_step_that_is_saved_again_is_another_checkpoint(place):
    place.put(1)
    assert place.run() == 0
    place.put(1)
    assert place.run() == 0
    place.check(1, 1)
    assert place.query("SELECT count(DISTINCT commit_ns) FROM validation") == [(2,)]


def test_later_pins_hold_only_the_items_that_are_read(place):
    """A CheckpointManager saves the state as the item `default`."""
    world.save(place.checkpoints, [3])
    queue = place.queue()
    assert place.run(queue) == 0
    place.check(3)
    assert set(queue.items) == {"default"}


def test_relative_paths(place, monkeypatch):
    monkeypatch.chdir(place.root)
    place.put(3)
    status = place.watch(
        checkpoint_dir="checkpoints", directory=place.output, max_validations=1
    )
    assert (status, place.steps()) == (0, [3])


# Order


def test_newest_first(place):
    place.put(1, 2, 3)
    queue = place.queue(newest_first=True)
    place.put(4)
    (newer,) = (new for new in place.queue().queue if new.step == 4)
    waiting = queue.waiting

    def arrives_after_the_first():
        if queue.done_steps == [3] and newer not in queue.queue:
            queue.queue.append(newer)
        return waiting()

    queue.waiting = arrives_after_the_first
    assert place.run(queue, order="newest") == 0
    place.check(3, 4, 2, 1)


def test_latest_skips_what_is_older_and_records_it(place):
    place.put(1, 2, 3)
    assert place.run(order="latest") == 0
    place.check(3)
    assert place.failures() == dict.fromkeys((1, 2), ("skipped", "step 3 was newer"))
    counts = "1 validated, 0 already in the ledger, 0 lost, 0 corrupt, 0 retried"
    assert f"{counts}, 2 skipped\n" in place.out
    place.put(4)
    assert place.run(order="latest") == 0
    place.check(3, 4)
    assert sorted(place.failures()) == [1, 2]
    assert "1 validated, 3 already in the ledger, 0 lost, 0 corrupt, 0 retried\n" in place.out
    assert signals.read(place.output).failed == (1, 2)


# The end of a run


def test_it_ends_after_max_validations(place):
    place.put(3, 4)
    assert place.run(max_validations=1) == 0
    place.check(3)
    assert "1 validated" in place.out


def test_it_ends_when_no_checkpoint_comes_for_idle_timeout(place):
    place.put(1, 2)
    clock = Clock()
    queue = place.queue(finished=False, clock=clock)
    second = queue.queue.pop()
    queue.arrivals = [list, list, lambda: [second]]
    assert place.run(queue, idle_timeout=10, poll_interval=4.0, clock=clock) == 0
    place.check(1, 2)
    assert clock.now == 4.0 * (2 + 3)  # the second checkpoint starts the timeout again
    assert "no new checkpoint for 10 s" in place.log


def test_an_interrupted_run_prints_its_summary(place):
    place.put(1)
    queue = place.queue()

    def interrupt():
        raise KeyboardInterrupt

    queue.arrivals = [interrupt]
    with pytest.raises(KeyboardInterrupt):
        place.run(queue)
    assert "best on tiny: step 1," in place.out
    assert "1 validated" in place.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_row_is_written_waits_for_the_trackers(place, number):
    class Interrupting(Silent):
        def record(self, ranked):
            os.kill(os.getpid(), number)

    def stop(*_):
        raise KeyboardInterrupt

    def trackers(tracked):
        return [Interrupting(), *default_trackers(tracked)]

    place.put(1, 2)
    before = {sent: signal.signal(sent, stop) for sent in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt):
            place.run(trackers=trackers)
    finally:
        for sent, handler in before.items():
            signal.signal(sent, handler)
    place.check(1)
    assert "1 validated" in place.out


def test_a_directory_that_does_not_exist_is_an_error(place):
    missing = str(place.root / "missing")
    settings = {"checkpoint_dir": missing, "idle_timeout": 0.2}
    message = place.refused(**settings)
    assert message.startswith(f"`checkpoint_dir={missing}` does not exist: name the directory")
    assert place.out == ""  # neither an empty table nor counts of nothing
    assert f"waiting for checkpoints in {missing}, which does not exist yet" in place.log


def test_a_directory_without_checkpoints_is_a_warning(place):
    place.checkpoints.mkdir()
    assert place.run(idle_timeout=0.2) == 0
    hint = "is it where the trainer saves?"
    assert f"found no checkpoint in {place.checkpoints}: {hint}" in place.log


def test_the_directory_above_the_checkpoints_is_a_warning_that_names_it(place):
    place.put(3)
    (place.root / "train").mkdir()
    below = place.checkpoints.rename(place.root / "train" / "checkpoints")
    above = str(below.parent)
    assert place.run(place.queue_of([]), checkpoint_dir=above, idle_timeout=0.2) == 0
    assert f"found no checkpoint in {above}: did you mean {below}?" in place.log


# Bad checkpoints


def test_bad_checkpoints_are_a_row_each_and_the_others_are_validated(place):
    place.put(1, 2, 5, 6)
    mend = cut(place.checkpoints / "2")
    place.put(3, values=np.full_like(world.table(3), np.nan))
    place.put(4, values=world.table(4)[:, :2])
    place.complete()

    assert place.watch(keep_best=2, patience=2) == 1
    place.check(1, 5, 6)
    assert "3 validated, 0 already in the ledger, 0 lost, 3 corrupt, 0 retried" in place.out
    assert place.reasons() == {2: "corrupt", 3: "non-finite", 4: "mismatch"}
    for step, (reason, message) in place.failures().items():
        assert str(place.checkpoints / str(step)) in message
        assert f"{step}  {reason}: {message}" in place.out
    assert place.pins() == []
    check_signals(place)
    check_exports(place)

    # The next run skips them, and restores what a kill left incomplete.
    metrics = place.output / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-200])
    (place.output / "signals.json").unlink()
    assert place.watch(keep_best=2, patience=2) == 0
    known = "6 already in the ledger (3 failed; `retry_failed` validates them again)"
    assert f"0 validated, {known}, 0 lost, 0 corrupt" in place.out
    place.check(1, 5, 6)
    check_signals(place)
    check_exports(place)

    # With retry_failed they are tried again, except for one that no longer exists.
    mend()
    place.delete(3)
    assert place.watch(keep_best=2, retry_failed=True) == 1
    assert "retrying 2 failed checkpoints of earlier runs" in place.log
    assert "1 validated, 3 already in the ledger, 0 lost, 1 corrupt" in place.out
    place.check(1, 5, 6, 2)
    assert place.reasons() == {3: "non-finite", 4: "mismatch"}


def check_signals(place):
    values = {step: np.mean(world.expected(step)) for step in (1, 5, 6)}
    best = max(values, key=values.get)
    state = signals.read(place.output)
    assert state.select_by == "tiny:RR@10"
    assert state.values == pytest.approx(values)
    assert state.failed == (2, 3, 4)
    assert (state.best.step, state.best.value) == (best, pytest.approx(values[best]))
    assert state.best.checkpoint == str(place.checkpoints / str(best))
    assert state.stop
    assert state.reason == "2 validations without a significant gain"


def check_exports(place):
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
        restored = checkpointer.restore((best / "best").resolve(), tower_tree(wanted))
    np.testing.assert_array_equal(restored["params"]["words"]["embedding"], table)


def test_an_unreadable_checkpoint_has_no_row_and_stays_pinned(place, monkeypatch):
    load = session.load

    def unreadable(checkpoint, plan):
        if checkpoint.step == 1:
            raise UnreadableError("step 1: the file system failed")
        return load(checkpoint, plan)

    monkeypatch.setattr(session, "load", unreadable)
    place.put(1, 2)
    queue = place.queue()
    assert place.run(queue) == 1
    place.check(2)
    assert place.failures() == {}
    assert (queue.done_steps, queue.aside_steps) == ([2], [1])
    assert "step 1: the file system failed; the next run will try it again" in place.log
    assert "1 validated, 0 already in the ledger, 0 lost, 0 corrupt" in place.out
    assert ", 1 unreadable\n" in place.out
    monkeypatch.undo()
    assert place.run() == 0
    place.check(2, 1)


def test_the_failure_of_a_deleted_checkpoint_explains_why_it_was_not_pinned(place):
    place.put(1, 2)
    queue = place.queue(unpinned={1: "the disk has no links"})
    place.delete(1)
    assert place.run(queue) == 0
    place.check(2)
    ((reason, message),) = place.failures().values()
    assert reason == "vanished"
    assert message.endswith(" (it was not pinned: the disk has no links)")
    assert "1 validated, 0 already in the ledger, 1 lost, 0 corrupt" in place.out


def test_without_hard_links_a_deleted_checkpoint_is_recorded(place, other_disk):
    place.put(1, 2)
    pins = {"pin_dir": other_disk / "pins"}
    watcher = place.watcher(**pins)
    with place.captured():
        watcher.start()
    assert place.log.count("checkpoints cannot be pinned") == 1
    place.delete(1)
    place.complete()
    assert place.run(watcher, **pins) == 0
    watcher.stop()
    place.check(2)
    ((reason, message),) = place.failures().values()
    assert reason == "vanished"
    assert "(it was not pinned: " in message


def test_the_failure_of_a_lost_checkpoint_names_the_pin_limit(place):
    place.put(1, 2, 3, 4)
    limited = {"pin_limit": PinLimit(count=1), "host_checkpoints": 1}
    watcher = place.watcher(**limited)
    with place.captured():
        watcher.start()
    assert place.log.count("is not pinned: 1 checkpoints are pinned already") == 3
    place.delete(1, 2, 3, 4)
    place.complete()
    assert place.run(watcher, **limited) == 0
    watcher.stop()
    place.check(1)
    assert place.reasons() == dict.fromkeys((2, 3, 4), "vanished")
    for _, message in place.failures().values():
        assert "(it was not pinned: 1 checkpoints are pinned already, which is the" in message
        assert "`max_pins`" in message
    assert "1 validated, 0 already in the ledger, 3 lost, 0 corrupt" in place.out


# Gaps


def test_steps_that_were_saved_and_deleted_between_runs_are_recorded(place):
    place.put(10, 20, 30)
    assert place.run() == 0
    place.put(60, 70)
    assert place.run() == 0
    place.check(10, 20, 30, 60, 70)
    assert place.reasons() == {40: "unseen", 50: "unseen"}
    assert place.failures()[40][1] == "saved and deleted while no jaxval was running"
    assert "2 validated, 3 already in the ledger, 2 lost, 0 corrupt" in place.out
    assert signals.read(place.output).failed == (40, 50)
    place.put(90)  # while the run watches, nothing is missed
    assert place.run() == 0
    assert sorted(place.failures()) == [40, 50, 80]


def test_a_gap_within_a_run_is_not_recorded(place):
    place.put(10, 20, 30)
    assert place.run() == 0
    place.put(40, 70)
    queue = place.queue()
    last = queue.queue.pop()
    queue.arrivals = [lambda: [last]]
    assert place.run(queue) == 0
    place.check(10, 20, 30, 40, 70)
    assert place.failures() == {}


def test_a_gap_after_what_a_killed_run_had_pinned_is_recorded(place):
    place.put(10, 20, 30, 60)
    *pinned, new = place.queue().queue
    assert place.run(place.queue_of([new], left_behind=pinned)) == 0
    place.check(10, 20, 30, 60)
    assert place.reasons() == {40: "unseen", 50: "unseen"}


# Checkpoints that do not fit the encoder


def test_if_no_checkpoint_fits_nothing_is_recorded(place):
    place.put(1, 2, 3)
    place.put(4, spoil=cut)  # damage does not show whether the settings are right
    place.complete()
    with pytest.raises(MismatchError) as raised:
        place.watch(factory="tests.e2e.other:encoder")
    message = str(raised.value)
    assert message.startswith("checkpoint 3 (")
    assert (
        "vectors/embedding [14, 4] is missing (nearest: params/words/embedding [14, 4])"
        in message
    )
    assert "validated" not in place.out
    assert (place.steps(), place.steps("failure")) == ([], [4])
    assert len(place.pins()) == 3
    place.delete(1, 2, 3, 4)
    assert place.watch(order="newest") == 0  # with the right settings, from the pins
    place.check(3, 2, 1)


def test_mismatches_are_recorded_once_a_checkpoint_fits(place):
    place.put(1, 2, values=world.table(1)[:, :2])
    place.put(3, 4)
    queue = place.queue()
    assert place.run(queue) == 1
    place.check(3, 4)
    assert place.reasons() == {1: "mismatch", 2: "mismatch"}
    assert queue.aside_steps == [1, 2]
    assert sorted(queue.done_steps) == [1, 2, 3, 4]


def test_after_a_run_in_which_one_fitted_a_mismatch_is_recorded_at_once(place):
    place.put(1)
    assert place.run() == 0
    place.put(2, values=world.table(2)[:, :2])
    assert place.run() == 1
    assert place.reasons() == {2: "mismatch"}


# Series


def test_other_settings_make_another_series(place):
    place.put(3)
    assert place.run() == 0
    assert place.run(similarity="cosine") == 0
    assert "tiny: similarity changed since the last run; starting a new series (" in place.log
    assert place.run() == 0
    assert "starting a new series" not in place.log
    assert place.query("SELECT count(*), count(DISTINCT series) FROM validation") == [(2, 2)]


def test_an_earlier_series_is_neither_shown_nor_compared(place):
    place.put(1, 2)
    assert place.run(measures=("AP",), keep_best=1) == 0
    assert place.run(keep_best=1) == 0
    rows = place.query("SELECT against FROM validation ORDER BY id")
    assert [against for (against,) in rows][2] is None
    assert place.out.count("* ") == 2  # the legend and one row
    assert [list(line["measures"]) for line in place.lines()] == [
        ["AP"],
        ["AP"],
        ["RR@10", "nDCG@10"],
        ["RR@10", "nDCG@10"],
    ]


def test_on_two_devices_and_in_bfloat16(place):
    place.put(3)
    assert place.run(devices=2) == 0
    assert place.run(devices=2, dtype="bfloat16") == 0
    full, half = (line["measures"]["RR@10"] for line in place.lines())
    assert full == pytest.approx(np.mean(world.expected(3)))
    assert half == pytest.approx(full, abs=0.3)


def test_sets_with_the_same_corpus_have_it_encoded_once(place):
    queries = dict(list(world.QUERIES.items())[:2])
    qrels = {query: world.QRELS[query] for query in queries}
    other = dict(list(world.PASSAGES.items())[::-1])
    place.add_set("half", queries=queries, qrels=qrels)
    place.add_set("other", passages=other)
    place.put(3)
    assert place.run() == 0
    values = {line["dataset"]: line["measures"]["RR@10"] for line in place.lines()}
    assert values["tiny"] == pytest.approx(np.mean(world.expected(3)))
    assert values["half"] == pytest.approx(np.mean(world.expected(3)[:2]))
    assert values["other"] == pytest.approx(np.mean(world.expected(3, passages=other)))
    seconds = {line["dataset"]: line["seconds"]["passages"] for line in place.lines()}
    assert seconds["tiny"] == seconds["half"] != seconds["other"]
    assert len(list((place.root / "tokens").iterdir())) == 4  # two corpora, two sets of queries


# Messages and trackers


class SteppingClock(Clock):
    """A clock that advances some seconds at each reading."""

    def __init__(self, seconds):
        super().__init__()
        self._seconds = seconds

    def __call__(self):
        self.now += self._seconds
        return self.now


def test_the_time_until_the_queue_is_empty_is_logged(place):
    place.put(1, 2, 3, 4)
    assert place.run(clock=SteppingClock(11.0)) == 0
    logged = [line for line in place.log.splitlines() if "until the queue is empty" in line]
    assert logged == [
        "3 checkpoints are waiting; about 33 s until the queue is empty (see `order`)",
        "2 checkpoints are waiting; about 22 s until the queue is empty (see `order`)",
    ]


def test_a_queue_of_less_than_ten_seconds_is_not_logged(place):
    place.put(1, 2, 3, 4)
    assert place.run(clock=SteppingClock(3.0)) == 0
    assert "until the queue is empty" not in place.log


class Silent:
    """A tracker that does nothing."""

    def begin(self, past, failures):
        pass

    def record(self, ranked):
        pass

    def fail(self, failure):
        pass

    def end(self):
        pass


class Recording(Silent):
    """A tracker that keeps the rows that it gets."""

    def __init__(self):
        self.events = []

    def begin(self, past, failures):
        self.events.append(([step(ranked) for ranked in past], len(failures)))

    def record(self, ranked):
        self.events.append(step(ranked))

    def fail(self, failure):
        self.events.append(failure.reason)

    def end(self):
        self.events.append("end")


def step(ranked: Ranked):
    best = ranked.best_before and ranked.best_before.checkpoint.step
    return ranked.validation.checkpoint.step, best, ranked.is_best


def test_trackers_of_the_caller_get_every_row(place):
    values = {n: np.mean(world.expected(n)) for n in (1, 2, 3)}
    assert values[1] > values[2] > values[3]
    tracker, tracked = Recording(), []

    def trackers(run):
        tracked.append(run)
        return [tracker]

    place.put(1, 2)
    place.put(3, spoil=cut)
    assert place.run(trackers=trackers) == 1
    place.put(4, values=world.table(3))
    assert place.run(trackers=trackers) == 0
    first = [([], 0), (1, None, True), (2, 1, False), "corrupt", "end"]
    past = [(1, None, True), (2, 1, False)]
    assert tracker.events == [*first, (past, 1), (4, 1, False), "end"]
    assert list(tracked[0].datasets.values()) == ["tiny"]
    assert tracked[0].measures == ("RR@10", "nDCG@10")
    assert tracked[0].directory == place.output
    assert not (place.output / "metrics.jsonl").exists()


def test_a_tracker_that_fails_does_not_stop_the_run(place):
    class Failing(Silent):
        def record(self, ranked):
            raise OSError("the server is down")

    place.put(1, 2)
    assert place.run(trackers=lambda run: [Failing(), *default_trackers(run)]) == 0
    place.check(1, 2)
    message = "step 2 is in the ledger, but Failing failed: OSError('the server is down')"
    assert message in place.log


def test_a_run_that_fails_after_a_result_prints_where_it_is(place):
    place.put(1)
    queue = place.queue()

    def wrong():
        raise UserError("the settings are wrong")

    queue.arrivals = [wrong]
    with pytest.raises(UserError):
        place.run(queue)
    assert "1 validated" in place.out


def test_documents_that_only_the_qrels_name_are_counted_and_logged(place):
    qrels = {"q0": {"p0": 1, "x1": 1, "x2": 1}}
    place.settings["datasets"] = ()
    place.add_set("tiny", qrels=qrels)
    place.put(3)
    assert place.run(measures=("R@100",)) == 0
    assert "2 of 3 judged documents are not in the corpus" in place.log
    assert "3 queries have no judgment and are left out; 1 are judged" in place.log
    assert place.lines()[0]["measures"]["R@100"] == pytest.approx(1 / 3)
