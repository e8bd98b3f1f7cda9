"""signals.json, and Orbax's checkpoint manager with the preservation policy."""

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval import signals
from jaxval.demo import task
from jaxval.signals import Best, Signals, State

WRITTEN = State(
    select_by="dev:nDCG@10",
    best=Best(200, 0.5, "/c/200"),
    values={100: 0.25, 200: 0.5},
    failed=(150,),
    stop=True,
    reason="3 validations without a gain",
)


def judged(*failed, stop=False, **values):
    """Returns a state; `judged(s1=0.5)` means that step 1 was validated."""
    by_step = {int(step[1:]): value for step, value in values.items()}
    step = max(by_step, key=by_step.get)
    return State("dev:AP", Best(step, by_step[step], f"/c/{step}"), by_step, failed, stop)


def file_in(folder):
    return folder / "signals.json"


def test_a_written_state_is_read(tmp_path):
    signals.write(tmp_path, WRITTEN)
    assert signals.read(tmp_path) == WRITTEN
    assert signals.read(str(tmp_path)) == WRITTEN
    assert list(tmp_path.iterdir()) == [file_in(tmp_path)]


def test_numpy_numbers_are_written(tmp_path):
    value = np.float32(0.5)
    signals.write(
        tmp_path,
        State(
            "m",
            Best(1, value.item(), "/c"),
            {np.int64(1): value},
            (np.int64(2),),
            np.bool_(True),
        ),
    )
    read = signals.read(tmp_path)
    assert (read.values, read.failed, read.stop) == ({1: 0.5}, (2,), True)


def test_without_a_file_nothing_is_known(tmp_path):
    assert signals.read(tmp_path / "not yet") == State()
    reader = Signals(tmp_path / "not yet")
    assert reader.best() is None
    assert not reader.should_stop()


UNREADABLE = {
    "empty": b"",
    "cut": b'{"format": "jaxval signals 2", "sel',
    "binary": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "a number": b"3",
    "another program's": b'{"best": 3, "stop": true}',
    "another version": json.dumps({"format": "jaxval signals 9", "stop": True}).encode(),
    "fields missing": b'{"format": "jaxval signals 2"}',
    "deep": b"[" * 100_000,
    "a step that is none": json.dumps(
        {**signals._to_json(WRITTEN), "values": {"last": 0.5}}
    ).encode(),
    "an infinite step": json.dumps(
        {**signals._to_json(WRITTEN), "failed": [float("inf")]}
    ).encode(),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_file_is_named_with_a_remedy(tmp_path, content):
    file_in(tmp_path).write_bytes(content)
    with pytest.raises(ValueError, match=r"signals\.json is not .*output_dir"):
        signals.read(tmp_path)


def test_a_folder_in_place_of_the_file_is_named_too(tmp_path):
    file_in(tmp_path).mkdir()
    with pytest.raises(ValueError, match=r"signals\.json is not"):
        signals.read(tmp_path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*signals._to_json(WRITTEN), "step", "7"]), inner, max_size=7
            )
        ),
    )
)
def test_training_continues_with_any_content(tmp_path, content):
    file_in(tmp_path).write_text(json.dumps({"format": signals._FORMAT, "rest": content}))
    if isinstance(content, dict):
        whole = {**signals._to_json(WRITTEN), **content, "format": signals._FORMAT}
        file_in(tmp_path).write_text(json.dumps(whole))
    with contextlib.suppress(ValueError):
        told = signals.read(tmp_path)
        assert told.best is None or isinstance(told.best, Best)
    reader = Signals(tmp_path)
    assert reader.should_stop() in (True, False)
    assert len(kept(reader.preservation_policy(), 1, 2, 3)) <= 3


def test_only_true_stops(tmp_path):
    file_in(tmp_path).write_text(json.dumps({**signals._to_json(WRITTEN), "stop": "false"}))
    assert not Signals(tmp_path).should_stop()


@pytest.mark.parametrize("content", [b"{", None], ids=["cut", "a folder"])
def test_a_trainer_warns_once_and_continues(tmp_path, caplog, content):
    if content is None:
        file_in(tmp_path).mkdir()
    else:
        file_in(tmp_path).write_bytes(content)
    reader = Signals(tmp_path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not reader.should_stop()
            assert reader.best() is None
            assert kept(reader.preservation_policy(), 1, 2, 3) == [1, 2, 3]
    (line,) = caplog.messages
    assert str(file_in(tmp_path)) in line


def test_a_repaired_file_is_read(tmp_path):
    file_in(tmp_path).write_text("{")
    reader = Signals(tmp_path)
    assert not reader.should_stop()
    signals.write(tmp_path, WRITTEN)
    assert reader.should_stop()
    assert reader.best() == WRITTEN.best
    file_in(tmp_path).unlink()
    assert not reader.should_stop()
    assert reader.best() is None


def test_the_file_is_read_only_if_it_changed(tmp_path, monkeypatch):
    reads = []
    real = signals.read
    monkeypatch.setattr(signals, "read", lambda folder: reads.append(1) or real(folder))
    signals.write(tmp_path, WRITTEN)
    reader = Signals(tmp_path)
    for _ in range(3):
        assert reader.should_stop()
        assert reader.best() == WRITTEN.best
    assert len(reads) == 1
    signals.write(tmp_path, State())
    assert not reader.should_stop()
    assert not reader.should_stop()
    assert len(reads) == 2


def test_a_reader_never_sees_half_a_file(tmp_path):
    """Each state repeats one number, in files of very different lengths."""
    states = [State("m", None, dict.fromkeys(range(n * 50), float(n))) for n in range(1, 40)]
    signals.write(tmp_path, states[0])
    over = threading.Event()
    seen, torn = set(), []

    def read():
        while not over.is_set():
            values = signals.read(tmp_path).values
            (value,) = set(values.values()) if values else (None,)
            seen.add(value)
            if value is None or len(values) != 50 * value:
                torn.append(values)

    failures = []
    reader = threading.Thread(target=lambda: _caught(read, failures))
    reader.start()
    for _ in range(5):
        for state in states:
            signals.write(tmp_path, state)
    over.set()
    reader.join()
    assert (torn, failures) == ([], [])
    assert len(seen) > 1
    assert list(tmp_path.iterdir()) == [file_in(tmp_path)]


def _caught(function, failures):
    try:
        function()
    except BaseException as error:
        failures.append(error)


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    signals.write(tmp_path, WRITTEN)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        signals.write(tmp_path, State())
    assert signals.read(tmp_path) == WRITTEN
    assert list(tmp_path.iterdir()) == [file_in(tmp_path)]


def test_another_user_may_read_it(tmp_path):
    before = os.umask(0o022)
    try:
        signals.write(tmp_path, WRITTEN)
    finally:
        os.umask(before)
    assert file_in(tmp_path).stat().st_mode & 0o777 == 0o644


def test_only_the_standard_library_is_imported():
    package = str(Path(signals.__file__).parents[1])
    script = f"""
import sys
sys.path.insert(0, {package!r})
from jaxval.signals import Signals
Signals("nowhere").preservation_policy().should_preserve([])
outside = {{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names
print(*sorted(outside - {{"__main__"}}))
"""
    ran = subprocess.run(
        [sys.executable, "-S", "-I", "-c", script], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "jaxval\n"


def kept(policy, *steps):
    """Returns the steps that the policy preserves, oldest first."""
    checkpoints = [SimpleNamespace(step=step) for step in steps]
    flags = policy.should_preserve(checkpoints, context=object())
    return [step for step, flag in zip(steps, flags, strict=True) if flag]


def policy_after(tmp_path, state, **settings):
    signals.write(tmp_path, state)
    return Signals(tmp_path).preservation_policy(**settings)


def test_the_policy_by_hand(tmp_path):
    state = judged(3, 4, s1=0.2, s2=0.9, s5=0.3)
    steps = range(1, 9)
    assert kept(policy_after(tmp_path, state), *steps) == [2, 6, 7, 8]
    assert kept(policy_after(tmp_path, state, keep=2), *steps) == [2, 5, 6, 7, 8]
    assert kept(policy_after(tmp_path, state, keep=0), *steps) == [6, 7, 8]
    assert kept(policy_after(tmp_path, state), 1, 2, 3, 4) == [2, 4]  # 4 is the newest
    assert kept(policy_after(tmp_path, state, newest=2), 1, 2, 3, 4) == [2, 3, 4]
    assert kept(policy_after(tmp_path, state), 1, 5) == [5]  # 2 is gone
    assert kept(policy_after(tmp_path, state)) == []


def test_if_lower_is_better_the_lowest_are_kept(tmp_path):
    state = State("dev:AvgRank", Best(5, 1.5, "/c/5"), {1: 9.0, 2: 4.0, 5: 1.5}, (), False)
    state = dataclasses.replace(state, lower_is_better=True)
    assert kept(policy_after(tmp_path, state, keep=2), 1, 2, 5, 6) == [2, 5, 6]
    assert signals.read(tmp_path) == state


def test_among_equals_the_named_best_is_kept_and_then_the_earliest(tmp_path):
    state = judged(s1=0.5, s2=0.5, s3=0.1)
    assert kept(policy_after(tmp_path, state), 1, 2, 3) == [1, 3]
    named = State("m", Best(2, 0.5, "/c/2"), {1: 0.5, 2: 0.5, 3: 0.1})
    assert kept(policy_after(tmp_path, named), 1, 2, 3) == [2, 3]


@pytest.mark.parametrize("settings", [{"keep": -1}, {"newest": 0}])
def test_invalid_policy_settings_are_refused(tmp_path, settings):
    with pytest.raises(ValueError, match="must be"):
        Signals(tmp_path).preservation_policy(**settings)


@given(
    values=st.dictionaries(st.integers(0, 20), st.floats(0, 1), max_size=12),
    failed=st.sets(st.integers(0, 20), max_size=8),
    steps=st.sets(st.integers(0, 20), max_size=15).map(sorted),
    keep=st.integers(0, 4),
    newest=st.integers(1, 4),
)
def test_properties_of_the_policy(tmp_path, values, failed, steps, keep, newest):
    state = State("m", None, values, tuple(failed))
    left = kept(policy_after(tmp_path, state, keep=keep, newest=newest), *steps)
    assert set(steps) - set(values) - failed <= set(left)
    assert steps[-newest:] == left[-newest:]
    gone = [values[step] for step in steps if step in values and step not in left]
    held = sorted((values[step] for step in left if step in values), reverse=True)
    assert not gone or not keep or held[keep - 1] >= max(gone)
    assert len(set(left) & {*values, *failed}) <= keep + newest


def test_orbaxs_manager_keeps_the_checkpoints_of_the_policy(tmp_path):
    out, root = tmp_path / "jaxval", tmp_path / "checkpoints"
    out.mkdir()
    reader = Signals(out)
    options = ocp.CheckpointManagerOptions(preservation_policy=reader.preservation_policy())
    tree = {"w": np.arange(4.0)}
    signals_before = {
        4: judged(s1=0.2, s2=0.6),
        6: judged(3, s1=0.2, s2=0.6, s4=0.5),
        8: judged(3, s1=0.2, s2=0.6, s4=0.5, s5=0.7, s6=0.1),
    }
    left_after = {3: {1, 2, 3}, 4: {2, 3, 4}, 5: {2, 3, 4, 5}, 6: {2, 5, 6}, 8: {5, 7, 8}}
    with ocp.CheckpointManager(root, options=options) as manager:
        for step in range(1, 9):
            if step in signals_before:
                signals.write(out, signals_before[step])
            manager.save(step, args=ocp.args.StandardSave(tree))
            manager.wait_until_finished()
            left = {int(path.name) for path in root.iterdir()}
            assert left == left_after.get(step, left)
        assert manager.latest_step() == 8
        assert set(manager.all_steps()) == {5, 7, 8}
    assert reader.best() == Best(5, 0.7, "/c/5")


def test_orbaxs_manager_continues_with_an_invalid_file(tmp_path):
    file_in(tmp_path).write_text("{")
    policy = Signals(tmp_path).preservation_policy()
    options = ocp.CheckpointManagerOptions(preservation_policy=policy)
    with ocp.CheckpointManager(tmp_path / "c", options=options) as manager:
        for step in range(4):
            manager.save(step, args=ocp.args.StandardSave({"w": np.ones(2)}))
        manager.wait_until_finished()
        assert set(manager.all_steps()) == {0, 1, 2, 3}


def test_the_demos_trainer_follows_signals(tmp_path):
    """All its steps count as validated, so only the best and the newest checkpoint stay."""
    data, out = tmp_path / "data", tmp_path / "jaxval"
    out.mkdir()
    pairs = [
        task.Pair(f"m.f{n}", "m", f"What does function {n} do?", f"It returns the number {n}.")
        for n in range(8)
    ]
    task.write(data, pairs, pairs[:2], pairs[2:])
    task.write_tokenizer(data, [f"{p.query} {p.passage}" for p in pairs], vocabulary=100)
    signals.write(out, judged(s0=0.1, s2=0.5, s4=0.2, stop=True))
    command = [sys.executable, "-m", "jaxval.demo.trainer", f"--data={data}"]
    command += [f"--tokenizer={data}", f"--checkpoint_dir={tmp_path / 'c'}", "--steps=8"]
    command += ["--save_every=2", "--batch=4", "--query_len=8", "--passage_len=8"]
    command += [f"--jaxval_output_dir={out}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines()[-1] == "step 2: retrieval no longer improves, stopping"
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"2", "train_complete"}
