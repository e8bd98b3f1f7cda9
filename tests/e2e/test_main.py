"""The app as users start it: a process, real files, a trainer that is still writing."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e import world

ROOT = Path(__file__).parents[2]


class Run:
    """A place with texts, a tokenizer and the flags of a run."""

    def __init__(self, root):
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.output = root / "out"
        self.texts = world.write_texts(root / "texts")
        self.flags = {
            "checkpoint_dir": self.checkpoints,
            "output_dir": self.output,
            "dataset": f"tiny:{self.texts}",
            "encoder": "tests.e2e.world:encoder",
            "tokenizer": world.write_tokenizer(root / "tokenizer"),
            "devices": "cpu",
            "measures": "RR@10,nDCG@10",
            "poll_interval": 0.05,
        }

    def start(self, *extra, **flags):
        listed = [f"--{name}={value}" for name, value in (self.flags | flags).items()]
        return subprocess.Popen(
            [sys.executable, "-m", "jaxval.main", *listed, *extra],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def finish(self, *extra, **flags):
        process = self.start(*extra, **flags)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def lines(self):
        return [json.loads(line) for line in (self.output / "metrics.jsonl").open()]

    def query(self, sql):
        with sqlite3.connect(self.output / "ledger.sqlite") as db:
            return db.execute(sql).fetchall()


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def train(run, steps, seconds):
    command = [sys.executable, "-m", "tests.e2e.world", str(run.checkpoints), str(steps)]
    return subprocess.Popen([*command, str(seconds)], cwd=ROOT, stderr=subprocess.DEVNULL)


def test_beside_a_trainer_that_keeps_two_every_step_becomes_a_row_with_its_own_value(run):
    validator = run.start()
    trainer = train(run, steps=9, seconds=0.4)
    out, err = validator.communicate(timeout=120)
    assert (trainer.wait(), validator.returncode) == (0, 0), err
    rows = run.query(
        "SELECT step, mean, per_query FROM validation JOIN measure"
        " ON validation = validation.id WHERE measure.name = 'RR@10' ORDER BY validation.id"
    )
    assert [step for step, _, _ in rows] == list(range(9))
    for step, mean, values in rows:
        assert np.frombuffer(values) == pytest.approx(world.expected(step))
        assert mean == pytest.approx(np.mean(world.expected(step)))
    best = max(range(9), key=lambda step: np.mean(world.expected(step)))
    assert f"best on tiny: step {best}," in out
    assert "9 validated" in out
    assert sorted(int(p.name) for p in run.checkpoints.iterdir() if p.is_dir()) == [7, 8]
    assert list((run.output / "pins").iterdir()) == []


def test_a_second_start_tokenizes_and_compiles_nothing_and_skips_what_the_ledger_holds(run):
    world.save(run.checkpoints, [10, 20], complete=False)
    assert run.finish(idle_timeout=0.1)[0] == 0
    first = run.lines()
    assert [line["step"] for line in first] == [10, 20]
    stores = {path: path.stat().st_mtime_ns for path in run.output.glob("tokens/*/*.bin")}
    compiled = set(run.output.glob("compiled/*-cache"))
    assert compiled  # All that is compiled is kept; so what is not new there, was not compiled.
    world.save(run.checkpoints, [30])  # the trainer keeps two: step 10 goes
    status, out, _ = run.finish()
    assert status == 0
    assert "1 validated, 1 already in the ledger" in out
    assert run.lines()[:2] == first
    assert [line["step"] for line in run.lines()] == [10, 20, 30]
    assert {path: path.stat().st_mtime_ns for path in stores} == stores
    assert set(run.output.glob("tokens/*/*.bin")) == set(stores)
    assert set(run.output.glob("compiled/*-cache")) == compiled


def test_metrics_are_a_line_a_checkpoint_and_set(run):
    world.save(run.checkpoints, [3])
    assert run.finish(write_run="trec")[0] == 0
    (line,) = run.lines()
    assert line["step"] == 3
    assert line["dataset"] == "tiny"
    assert line["checkpoint"] == str(run.checkpoints / "3")
    assert line["measures"]["RR@10"] == pytest.approx(np.mean(world.expected(3)))
    assert set(line["seconds"]) == {"restore", "queries", "passages", "search", "measures"}
    assert (run.output / "runs" / "tiny" / "3.trec").read_text().startswith("q0 Q0 p")
    assert list((run.output / "tensorboard" / "tiny").rglob("events*"))


def test_sets_that_share_a_corpus_have_it_encoded_once(run):
    queries = dict(list(world.QUERIES.items())[:2])
    qrels = {query: world.QRELS[query] for query in queries}
    world.write_texts(run.root / "half", queries=queries, qrels=qrels)
    other = dict(list(world.PASSAGES.items())[::-1])
    world.write_texts(run.root / "other", passages=other)
    world.save(run.checkpoints, [3])
    extra = [f"--dataset={name}:{run.root / name}" for name in ("half", "other")]
    status, _, err = run.finish(*extra)
    assert status == 0, err
    values = {line["dataset"]: line["measures"]["RR@10"] for line in run.lines()}
    assert values["tiny"] == pytest.approx(np.mean(world.expected(3)))
    assert values["half"] == pytest.approx(np.mean(world.expected(3)[:2]))
    assert values["other"] == pytest.approx(np.mean(world.expected(3, passages=other)))
    spent = {line["dataset"]: line["seconds"]["passages"] for line in run.lines()}
    assert spent["tiny"] == spent["half"] != spent["other"]
    assert len(list(run.output.glob("tokens/*"))) == 4  # two corpora, two sets of queries


def test_other_settings_make_another_series(run):
    world.save(run.checkpoints, [3])
    assert run.finish()[0] == 0
    assert run.finish(similarity="cosine")[0] == 0
    assert run.finish()[0] == 0
    assert run.query("SELECT count(*), count(DISTINCT series) FROM validation") == [(2, 2)]


def test_on_two_devices_and_in_bfloat16(run, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    world.save(run.checkpoints, [3])
    assert run.finish()[0] == 0
    assert run.finish(dtype="bfloat16")[0] == 0
    full, half = (line["measures"]["RR@10"] for line in run.lines())
    assert full == pytest.approx(np.mean(world.expected(3)))
    assert half == pytest.approx(full, abs=0.3)


def test_relative_paths_are_as_good_as_absolute_ones(run, monkeypatch):
    world.save(run.checkpoints, [3])
    relative = {
        name: os.path.relpath(run.flags[name], ROOT)
        for name in ("checkpoint_dir", "output_dir")
    }
    status, _, err = run.finish(**relative)
    assert (status, [line["step"] for line in run.lines()]) == (0, [3]), err


def test_a_wait_of_less_than_ten_seconds_is_not_worth_a_word(run):
    world.save(run.checkpoints, [1, 2])
    world.save(run.root / "more", [3, 4])
    for step in (3, 4):
        (run.root / "more" / str(step)).rename(run.checkpoints / str(step))
    status, _, err = run.finish()
    assert status == 0, err
    assert all(int(wait) >= 10 for wait in re.findall(r"the last of them is (\d+) s", err))


def test_max_validations_ends_it(run):
    world.save(run.checkpoints, [3, 4], complete=False)
    status, out, _ = run.finish(max_validations=1)
    assert (status, [line["step"] for line in run.lines()]) == (0, [3])
    assert "1 validated" in out


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly_and_a_restart_goes_on(run, sent, status):
    world.save(run.checkpoints, [3], complete=False)
    process = run.start()
    assert "best so far" in process.stdout.readline()
    assert "step" in process.stdout.readline()
    assert "3* tiny" in process.stdout.readline()
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert "best on tiny: step 3" in out
    world.save(run.checkpoints, [4])
    assert run.finish()[0] == 0
    assert [line["step"] for line in run.lines()] == [3, 4]


def bad_line(run):
    (run.texts / "corpus.jsonl").write_text('{"_id": "p0", "text": "red"}\n{"_id": \n')


def bad_duplicate(run):
    (run.texts / "corpus.jsonl").write_text('{"_id": "p0", "text": "red"}\n' * 2)


def bad_empty(run):
    (run.texts / "corpus.jsonl").write_text("")


def bad_missing(run):
    (run.texts / "queries.jsonl").unlink()


def bad_unjudged(run):
    (run.texts / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nother\tp0\t1\n")


def bad_strangers(run):
    (run.texts / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tx9\t1\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (bad_line, "corpus.jsonl:2: "),
        (bad_duplicate, "'p0' stands 2 times"),
        (bad_empty, "no text in it"),
        (bad_missing, "queries"),
        (bad_unjudged, "test.tsv"),
        (bad_strangers, "none of the judged documents is in"),
        ({"measures": "RR@10,Nonsense@3"}, "--measures: 'Nonsense@3' is no measure"),
        ({"measures": "R@1000"}, "set --depth=1000"),
        ({"depth": 0}, "depth"),
        ({"encoder": "tests.e2e.world:encoders"}, "no 'encoders'; nearest: encoder"),
        ({"encoder": "no.such.module:f"}, "importing no.such.module raised"),
        ({"tokenizer": "/no/such/folder"}, "--tokenizer=/no/such/folder: "),
        ({"passage_template": "{titel} {text}"}, "--passage_template='{titel} {text}'"),
        ({"devices": "gpu:one"}, "--devices=gpu:one: write cpu"),
        ({"output_dir": ""}, "--output_dir is not set"),
        ({"model": "somewhere"}, "set one of --model"),
        ({"pooling": "mean"}, "belong to --model"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_nothing_is_validated(run, spoil, said):
    world.save(run.checkpoints, [3])
    flags = spoil if isinstance(spoil, dict) else {}
    if not isinstance(spoil, dict):
        spoil(run)
    status, _, err = run.finish(**flags)
    faults = [line for line in err.splitlines() if line.startswith("jaxval: ")]
    assert status == 2, err
    assert len(faults) == 1
    assert said in faults[0]
    assert "Traceback" not in err
    assert not (run.output / "ledger.sqlite").exists()


def test_a_tree_that_does_not_fit_says_what_is_missing_and_keeps_the_pin(run):
    world.save(run.checkpoints, [3])
    status, out, err = run.finish(encoder="tests.e2e.other:encoder")
    assert (status, out) == (2, "")
    assert "checkpoint 3" in err
    assert (
        "vectors/embedding [14, 4] is missing (nearest: default/params/words/embedding [14, 4])"
        in err
    )
    assert run.query("SELECT count(*) FROM validation") == [(0,)]
    assert run.finish()[0] == 0
    assert [line["step"] for line in run.lines()] == [3]


def test_a_directory_that_never_came_is_a_fault_and_an_empty_one_a_warning(run):
    missing = run.root / "nope"
    status, out, err = run.finish(checkpoint_dir=missing, idle_timeout=0.2)
    assert status == 2
    assert f"jaxval: --checkpoint_dir={missing} is still not there: name the" in err
    assert out == ""  # neither a table without rows nor a count of nothing
    missing.mkdir()
    status, _, err = run.finish(checkpoint_dir=missing, idle_timeout=0.2)
    assert status == 0, err
    assert f"no checkpoint was ever seen in {missing}: is it where the trainer saves?" in err


def test_the_directory_above_the_checkpoints_is_told_which_one_was_meant(run):
    above = run.root / "train"
    world.save(above / "checkpoints", [3], complete=False)
    status, _, err = run.finish(checkpoint_dir=above, idle_timeout=0.2)
    assert status == 0, err
    assert f"ever seen in {above}: did you mean {above / 'checkpoints'}?" in err


def test_a_plug_ins_own_traceback_follows_the_line(run):
    world.save(run.checkpoints, [3])
    status, _, err = run.finish(encoder="tests.e2e.other:broken")
    assert status == 2
    fault, place, line = err.splitlines()[-3:]
    assert fault.startswith("jaxval: --encoder=tests.e2e.other:broken: its parameters' shapes")
    assert "no attribute" in fault
    assert place.startswith(f'  File "{ROOT / "tests/e2e/other.py"}", line ')
    assert line == '    return nn.Embed(14, 4, name="vectors")(ids)[:, self.position]'


def test_documents_that_only_the_qrels_know_are_counted_and_said(run):
    qrels = {"q0": {"p0": 1, "x1": 1, "x2": 1}}
    texts = world.write_texts(run.root / "strangers", qrels=qrels)
    world.save(run.checkpoints, [3])
    status, _, err = run.finish(dataset=f"tiny:{texts}", measures="R@100")
    assert status == 0
    assert "2 of 3 judged documents are not in the corpus" in err
    assert "3 queries have no judgment and are left out; 1 are judged" in err
    assert run.lines()[0]["measures"]["R@100"] == pytest.approx(1 / 3)
