"""A soak test: jaxval is killed repeatedly while a trainer keeps two checkpoints.

    python -m tests.soak [--steps=300] [--seconds=0.4] [--seed=0] [--json=runs/soak.json]

Each step's parameters retrieve differently, and the trainer records when each step was
committed. So it is known which rows jaxval must have written: each step that was committed
while a watcher was running has one row, with that step's values. A watcher runs from its first
listing, which it logs, until `margin` seconds before the kill.
"""

import argparse
import contextlib
import ctypes
import json
import os
import platform
import random
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests.e2e import world

ROOT = Path(__file__).parents[1]
POLL = 0.05
MARGIN = 0.15  # three polls
KEEP = 2  # best checkpoints
MEASURE = "RR@10"

_TRAINERS = re.compile(r"\d+(\.orbax-checkpoint-tmp.*)?|train_complete")
_ROW = re.compile(r" *\d+[* ] +tiny ")
_JOURNAL = {"transaction": 0x100, "commit": 0x200}  # IN_CREATE and IN_DELETE of inotify
_PATIENCE = 60.0


@dataclass(frozen=True)
class Plan:
    """When a jaxval is killed: some time after an event.

    Attributes:
      event: `the start`, `the first listing`, the n-th `transaction` on the ledger (when it
        begins) or `commit` (when it ends), or the n-th new `line` of the table, which is
        printed after all other trackers have the row.
      delay: Time after the event, in seconds.
      rows: The number n.
    """

    event: str
    delay: float
    rows: int = 0

    def __str__(self):
        number = f"{self.event} {self.rows}" if self.rows else self.event
        return f"{self.delay:.2f} s after {number}"


@dataclass(frozen=True)
class Life:
    """One jaxval process, from its start to its end.

    Attributes:
      plan: When it was to be killed.
      started_ns: Time of its start, in nanoseconds since the epoch.
      watching_ns: Time of its first listing, or None if it had none.
      ended_ns: Time of its end.
      rows: Number of rows that it printed, without those that were in the ledger before.
      status: Exit status, negative if it was killed.
      torn: Whether its kill left an unfinished transaction on the ledger.
    """

    plan: str
    started_ns: int
    watching_ns: int | None
    ended_ns: int
    rows: int
    status: int
    torn: bool

    def watched(self, time_ns, margin):
        """Returns whether it watched at a time and for `margin` seconds after it."""
        if self.watching_ns is None:
            return False
        return self.watching_ns <= time_ns <= self.ended_ns - margin * 1e9

    def added(self, rows):
        """Returns the rows that it committed, by their times."""
        # A killed process may still finish a system call.
        begin, end = self.started_ns / 1e9, self.ended_ns / 1e9 + 0.05
        return [row for row in rows if begin <= row[3] <= end]


@dataclass(frozen=True)
class Report:
    """The result of a soak test.

    Attributes:
      figures: Name -> value.
      checks: Name -> (what was found, whether the check holds).
      lives: The jaxval processes.
      machine: Where the test ran.
    """

    figures: dict
    checks: dict
    lives: list[Life]
    machine: dict

    @property
    def holds(self):
        return all(good for _, good in self.checks.values())

    def __str__(self):
        lines = [f"{name:<58} {value}" for name, value in self.figures.items()]
        lines.append("")
        for name, (found, good) in self.checks.items():
            lines.append(f"{'ok  ' if good else 'FAIL'} {name:<53} {found}")
        return "\n".join(lines)

    def write(self, path):
        checks = {name: {"found": f, "holds": g} for name, (f, g) in self.checks.items()}
        whole = asdict(self) | {"checks": checks, "holds": self.holds}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(whole, indent=1) + "\n")


class Place:
    """The trainer's directory, jaxval's directory, and the files that both need."""

    def __init__(self, root):
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.output = root / "out"
        self.truth = root / "committed.jsonl"
        self.texts = world.write_texts(root / "texts")
        self.tokenizer = world.write_tokenizer(root / "tokenizer")

    @property
    def trained(self):
        return (self.checkpoints / "train_complete").exists()

    def train(self, steps, seconds):
        what = [str(steps), str(seconds), str(self.checkpoints), str(self.truth)]
        with (self.root / "trainer.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.soak", "train", *what],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def committed(self):
        """Returns step -> time of its commit, and the trainer's files at its end."""
        lines = [json.loads(line) for line in self.truth.read_text().splitlines()]
        steps = {line["step"]: line["committed_ns"] for line in lines if "step" in line}
        return steps, next(line["left"] for line in lines if "left" in line)

    @property
    def torn(self):
        """Whether a kill has left an unfinished transaction: its journal is not empty."""
        journal = self.output / "ledger.sqlite-journal"
        return journal.exists() and journal.stat().st_size > 0

    def rows(self, sql):
        with contextlib.closing(sqlite3.connect(self.output / "ledger.sqlite")) as db:
            return db.execute(sql).fetchall()


class Jaxval:
    """A running jaxval process."""

    def __init__(self, place):
        flags = {
            "checkpoint_dir": place.checkpoints,
            "output_dir": place.output,
            "dataset": f"tiny:{place.texts}",
            "encoder": "tests.e2e.world:encoder",
            "tokenizer": place.tokenizer,
            "devices": "cpu",
            "measures": MEASURE,
            "poll_interval": POLL,
            "keep_best": KEEP,
            "write_run": "trec",
        }
        self._place, self._torn_before = place, place.torn
        self.started_ns = time.time_ns()
        self.watching_ns = None
        self.rows = 0  # printed, without those that were in the ledger before
        self._ready = False
        self._said = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxval.main", *(f"--{n}={v}" for n, v in flags.items())],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # one stream, so that the lines are in order
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def outlives(self, plan):
        """Waits for the planned moment. Returns False if the process ends before it."""
        reached = {
            "the start": lambda: True,
            "the first listing": lambda: self.watching_ns is not None,
            "line": lambda: self.rows >= plan.rows,
            "transaction": lambda: self._ready,
            "commit": lambda: self._ready,
        }[plan.event]
        with self._said:
            self._said.wait_for(lambda: reached() or not self._reader.is_alive(), _PATIENCE)
        if plan.event in _JOURNAL:
            await_journal(self._place.output, _JOURNAL[plan.event], plan.rows, self.process)
        try:
            self.process.wait(plan.delay)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self, plan):
        ended_ns = time.time_ns()
        self.process.send_signal(signal.SIGKILL)
        return self._life(str(plan), ended_ns)

    def finish(self, timeout):
        """Waits for the process to end, and kills it after the timeout."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return self._life("none", time.time_ns())

    def _life(self, plan, ended_ns):
        status = self.process.wait()
        self._reader.join()
        self.process.stdout.close()
        return Life(
            plan=plan,
            started_ns=self.started_ns,
            watching_ns=self.watching_ns,
            ended_ns=ended_ns,
            rows=self.rows,
            status=status,
            torn=self._place.torn and not self._torn_before,
        )

    def _read(self):
        with (self._place.root / "jaxval.log").open("a") as log:
            log.write(f"---- process {self.process.pid}\n")
            for line in self.process.stdout:
                now = time.time_ns()
                log.write(line)
                with self._said:
                    if self.watching_ns is None and " watching " in line:
                        self.watching_ns = now
                    self._ready |= " waiting for checkpoints " in line
                    self.rows += self._ready and _ROW.match(line) is not None
                    self._said.notify_all()
        with self._said:
            self._said.notify_all()


def train(steps, seconds, directory, truth):
    """Runs the trainer."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    directory = Path(directory)
    with Path(truth).open("a", buffering=1) as log:

        def committed(step):
            log.write(json.dumps({"step": step, "committed_ns": time.time_ns()}) + "\n")

        how = {"devices": 2, "seconds": float(seconds), "complete": False}
        world.save(directory, range(int(steps)), committed=committed, **how)
        log.write(json.dumps({"left": inventory(directory)}) + "\n")
    (directory / "train_complete").touch()


def await_journal(output, change, number, process):
    """Waits for the n-th time that SQLite creates or removes the ledger's journal.

    inotify reports it within a fraction of a millisecond, before jaxval updates its trackers.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    inotify = libc.inotify_init()
    try:
        libc.inotify_add_watch(inotify, os.fsencode(output), change)
        while number > 0 and process.poll() is None:
            if select.select([inotify], [], [], 0.5)[0]:
                number -= os.read(inotify, 65536).count(b"ledger.sqlite-journal\0")
    finally:
        os.close(inotify)


def inventory(directory):
    """Returns path -> [size, time of change] of every file, and path -> [] of directories."""
    return {
        str(path.relative_to(directory)): [path.stat().st_size, path.stat().st_mtime_ns]
        if path.is_file()
        else []
        for path in sorted(directory.rglob("*"))
    }


def plans(draw):
    """Yields plans: first one that leaves some rows, then each kind in a random order."""
    yield Plan("line", 0.0, rows=6)
    while True:
        kinds = [
            Plan("the start", draw.uniform(0, 2)),
            Plan("the first listing", draw.uniform(0, 4)),
            Plan("the first listing", draw.uniform(4, 12)),
            Plan("transaction", 0.0, rows=draw.randint(1, 4)),
            Plan("commit", 0.0, rows=draw.randint(1, 4)),
            Plan("line", 0.0, rows=draw.randint(1, 4)),
            Plan("line", draw.uniform(0, 0.3), rows=draw.randint(1, 12)),
        ]
        yield from draw.sample(kinds, len(kinds))


def soak(root, *, steps, seconds, seed, margin=MARGIN, limit=900.0, say=print) -> Report:
    """Runs a soak test in an empty directory.

    Args:
      root: The directory.
      steps: Number of checkpoints that the trainer saves.
      seconds: Pause between two checkpoints, in seconds.
      seed: Seed of the moments at which jaxval is killed.
      margin: A step that is committed less than this before a kill may be lost, in seconds.
      limit: Maximum duration, in seconds.
      say: Called with a line about each process.
    """
    place, draw, start = Place(root), random.Random(seed), time.monotonic()
    lives, strangers, last = [], set(), False
    planned = plans(draw)
    jaxval = Jaxval(place)
    trainer = place.train(steps, seconds)
    try:
        while True:
            plan = next(planned)
            if not last and jaxval.outlives(plan):
                lives.append(jaxval.kill(plan))
            else:
                lives.append(jaxval.finish(limit - (time.monotonic() - start)))
            say(_told(lives[-1]))
            strangers |= _strangers(place)
            if lives[-1].status != -signal.SIGKILL:
                break
            if last or trainer.poll() not in (None, 0) or time.monotonic() - start > limit:
                break
            time.sleep(draw.choice([0.0, draw.uniform(0, 1), draw.uniform(0, 3)]))
            last = place.trained
            jaxval = Jaxval(place)
    finally:
        for process in (jaxval.process, trainer):
            if process.poll() is None:
                process.kill()
            process.wait()
    if not place.trained or lives[-1].status != 0:
        logs = "\n".join(
            (root / f"{name}.log").read_text()[-3000:] for name in ("trainer", "jaxval")
        )
        raise RuntimeError(f"the last run did not end: {lives[-1]}\n{logs}")
    return judge(place, lives, strangers, margin, time.monotonic() - start)


def judge(place, lives, strangers, margin, seconds) -> Report:
    """Compares jaxval's results with the trainer's record."""
    committed, left = place.committed()
    rows = place.rows(
        "SELECT step, validation.name, commit_ns, finished, mean, per_query FROM validation"
        f" JOIN measure ON validation = validation.id AND measure.name = '{MEASURE}'"
        " ORDER BY validation.id"
    )
    failures = place.rows("SELECT step, reason FROM failure ORDER BY id")
    times = Counter(row[0] for row in rows)
    watched = {
        step
        for step, ns in committed.items()
        if any(life.watched(ns, margin) for life in lives)
    }
    down = committed.keys() - watched
    lost = committed.keys() - times.keys()
    figures = {
        "steps saved": len(committed),
        "steps committed while watched": len(watched),
        "seconds before a kill that count as unwatched": margin,
        "rows": len(rows),
        "rows of steps committed while nothing was up": len(down & times.keys()),
        "steps lost while nothing was up": len(lost & down),
        "kills": sum(life.status == -signal.SIGKILL for life in lives),
        "kills before the first listing": sum(life.watching_ns is None for life in lives),
        "kills within a transaction": sum(life.torn for life in lives),
        "kills between a row and its last mirror": sum(
            life.rows < len(life.added(rows)) for life in lives
        ),
        "starts that added a row": sum(life.rows > 0 for life in lives),
        "seconds": round(seconds, 1),
    }
    checks = {
        "no watched step without a row": _none(watched - times.keys()),
        "no row of a step that was not saved": _none(times.keys() - committed.keys()),
        "no step twice": _none(step for step, n in times.items() if n > 1),
        "no (series, name, commit_ns) twice": _none(
            place.rows(
                "SELECT series, name, commit_ns FROM validation"
                " GROUP BY 1, 2, 3 HAVING count(*) > 1"
            )
        ),
        "no wrong value": _none(row[0] for row in rows if not _right(row)),
        "no start with rows out of step order": _none(_disordered(rows, lives)),
        "lost steps, each reported once": _equal(
            Counter(step for step, _ in failures), Counter(lost)
        ),
        "reasons given": _allowed(
            Counter(reason for _, reason in failures), {"unseen", "vanished"}
        ),
        **_mirrors(place, rows, lost),
        **_best(place, rows),
        "no pins left": _none(path.name for path in (place.output / "pins").glob("*")),
        "no other file in the trainer's directory": _none(strangers),
        "the trainer's files are unchanged": _equal(
            inventory(place.checkpoints), left | {"train_complete": [0, _completed(place)]}
        ),
    }
    return Report(figures, checks, lives, machine())


def _told(life):
    up = (life.ended_ns - (life.watching_ns or life.ended_ns)) / 1e9
    end = f"killed {life.plan}" if life.status == -signal.SIGKILL else f"ended {life.status}"
    torn = ", within a transaction" if life.torn else ""
    return f"watched for {up:5.1f} s, {life.rows:>3} new rows, {end}{torn}"


def _strangers(place):
    if not place.checkpoints.is_dir():
        return set()
    names = {path.name for path in place.checkpoints.iterdir()}
    return {name for name in names if not _TRAINERS.fullmatch(name)}


def _completed(place):
    return (place.checkpoints / "train_complete").stat().st_mtime_ns


def _none(actual):
    actual = sorted(actual)
    return f"{len(actual)} {actual[:10] if actual else ''}".strip(), not actual


def _equal(actual, wanted):
    """Returns the number of entries and which differ, and whether none does."""
    differ = sorted(k for k in actual.keys() | wanted.keys() if actual.get(k) != wanted.get(k))
    differences = f", of {len(wanted)}; differ: {differ[:10]}" if differ else ""
    return f"{len(actual)}{differences}", not differ


def _allowed(actual, names):
    return ", ".join(f"{n} {name}" for name, n in actual.items()), actual.keys() <= names


def _right(row):
    step, mean, per_query = row[0], row[4], np.frombuffer(row[5])
    wanted = world.expected(step)
    return np.allclose(per_query, wanted, atol=1e-9) and np.isclose(mean, np.mean(wanted))


def _disordered(rows, lives):
    for number, life in enumerate(lives):
        steps = [row[0] for row in life.added(rows)]
        if steps != sorted(steps):
            yield number


def _mirrors(place, rows, lost):
    """Returns the checks of what the trackers wrote."""
    from jaxval import signals
    from tests.results.events import points

    values = {row[0]: row[4] for row in rows}
    text = (place.output / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    curves = [points(folder) for folder in (place.output / "tensorboard" / "tiny").iterdir()]
    curve = [point for run in curves for point in run[MEASURE]]
    runs = {path.name for path in (place.output / "runs" / "tiny").iterdir()}
    state = signals.read(place.output)
    exactly = [(row[0], row[2], row[4]) for row in rows]
    written = [(li["step"], li["committed_ns"], li["measures"][MEASURE]) for li in lines]
    return {
        "metrics.jsonl: the ledger's rows, in its order": (len(written), written == exactly),
        "TensorBoard: each step once, with its value": (
            len(curve),
            [step for step, _ in curve] == [row[0] for row in rows]
            and np.allclose([value for _, value in curve], [row[4] for row in rows]),
        ),
        "signals.json: values": _equal(state.values, values),
        "signals.json: failed": (len(state.failed), set(state.failed) == lost),
        "run files, one for each row": _equal(
            Counter(runs), Counter(f"{row[1]}.trec" for row in rows)
        ),
        "no incomplete run file": _none(
            step
            for step in values
            if not _complete(place.output / "runs/tiny" / f"{step}.trec")
        ),
    }


def _complete(path):
    """Returns whether a run file ranks every passage for every query, with its step's tag."""
    if not path.exists():
        return False
    fields = [line.split() for line in path.read_text().splitlines()]
    ranked = {(query, passage) for query, _, passage, *_ in fields}
    wanted = {(query, passage) for query in world.QUERIES for passage in world.PASSAGES}
    return ranked == wanted and {line[5] for line in fields} == {f"jaxval-{path.stem}"}


def _best(place, rows):
    """Returns the checks of the exports. Of equal steps the first is better."""
    import jax
    import orbax.checkpoint as ocp

    ranking = [row[0] for row in sorted(rows, key=lambda row: -row[4])]
    folder = place.output / "best"
    kept = {path.name.rpartition("_")[2] for path in folder.iterdir()} - {"best"}
    pointer = (folder / "best").resolve()
    words = jax.ShapeDtypeStruct(world.table(0).shape, np.float32)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(pointer, {"params": {"words": {"embedding": words}}})
    restored = np.asarray(tree["params"]["words"]["embedding"])
    return {
        "best/best: the best step": (
            pointer.name,
            pointer.name.endswith(f"_{ranking[0]}"),
        ),
        "best/best: restores to its step's parameters": (
            f"{restored.shape}",
            np.array_equal(restored, world.table(ranking[0])),
        ),
        "best: nothing but the best two": (
            " ".join(sorted(kept)),
            kept == {str(step) for step in ranking[:KEEP]},
        ),
    }


def machine():
    """Returns what the test ran on."""
    import jax
    import orbax.checkpoint as ocp

    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "orbax": ocp.__version__,
    }


def main(say: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=ROOT / "runs" / "soak.json")
    asked = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    root = Path(tempfile.mkdtemp(prefix="jaxval-soak-"))
    report = soak(root, steps=asked.steps, seconds=asked.seconds, seed=asked.seed)
    report.write(asked.json)
    say(f"\n{report}\n\n{report.machine}\n{asked.json}")
    if not report.holds:
        say(f"the files are in {root}")
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train(*sys.argv[2:])
    else:
        sys.stdout.reconfigure(line_buffering=True)
        sys.exit(main())
