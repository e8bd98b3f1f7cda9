"""jaxval.fidelity as a process, on data whose results can be computed by hand."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxval.sampling.strategies import draw
from tests.e2e import world

ROOT = Path(__file__).parents[2]
STEPS = (1, 2, 3, 4)
JUDGED = {passage for grades in world.QRELS.values() for passage in grades}
RUN = "q0 Q0 p7 2 1 t\nq0 Q0 p1 1 2 t\nq1 Q0 p2 1 2 t\n"


class Place:
    """Texts, a tokenizer, four checkpoints, and flags for them."""

    def __init__(self, root):
        self.root = root
        self.output = root / "out"
        self.flags = {
            "checkpoint_dir": root / "checkpoints",
            "output_dir": self.output,
            "dataset": f"tiny:{world.write_texts(root / 'texts')}",
            "encoder": "tests.e2e.world:encoder",
            "tokenizer": world.write_tokenizer(root / "tokenizer"),
            "devices": "cpu",
            "measures": "RR@10,nDCG@10",
        }
        _save(root / "checkpoints")
        (root / "bm25.trec").write_text(RUN)
        (root / "dense.trec").write_text("q3 Q0 p9 1 1 t\n")
        (root / "empty.trec").write_text("\n")
        (root / "strange.trec").write_text("q0 Q0 x1 1 1 t\nq1 Q0 x2 1 1 t\n")

    def start(self, *extra, **flags):
        listed = [f"--{name}={value}" for name, value in (self.flags | flags).items()]
        command = [sys.executable, "-m", "jaxval.fidelity", *listed, *extra]
        return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120)

    def runs(self, *names):
        return [f"--run={self.root / name}.trec" for name in names]

    def refused(self, *extra, **flags):
        ran = self.start(*extra, **flags)
        assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
        (line,) = [line for line in ran.stderr.splitlines() if line.startswith("jaxval: ")]
        assert not list(Path(flags["output_dir"]).glob("*fidelity*"))
        return line


def _save(directory):
    """Saves a checkpoint for each step."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(directory) as manager:
        for step in STEPS:
            state = {"params": {"words": {"embedding": world.table(step)}}}
            manager.save(step, args=ocp.args.StandardSave(state))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("place"))


def expected(ids):
    """Returns the RR@10 of each step on these passages."""
    passages = {id_: text for id_, text in world.PASSAGES.items() if id_ in ids}
    return [np.mean(world.expected(step, passages)) for step in STEPS]


def test_strategies_are_compared_with_the_whole_corpus(place):
    ran = place.start(
        *("--strategy=random:size=4", "--strategy=run:depth=1", "--strategy=run:depth=2@bm25"),
        *("--strategy=full", "--strategy=random:size=4", "--seed=3"),
        *place.runs("bm25", "dense"),
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads((place.output / "fidelity.json").read_text())
    rows = {row["strategy"]: row for row in report["strategies"]}
    kept = {
        "full": set(world.PASSAGES),
        "random:size=4": JUDGED | set(draw(world.PASSAGES, 4, 3, JUDGED)),
        "run:depth=1": JUDGED | {"p1", "p2", "p9"},
        "run:depth=2@bm25": JUDGED | {"p1", "p2", "p7"},
    }
    assert list(rows) == list(kept)
    assert (report["steps"], report["left_out"], report["queries"]) == ([1, 2, 3, 4], [], 4)
    for name, ids in kept.items():
        row = rows[name]
        assert row["means"]["RR@10"] == pytest.approx(expected(ids))
        assert row["passages"] == len(ids)
        assert row["share_of_tokens"] == pytest.approx(len(ids) / len(world.PASSAGES))
        agreement = row["agreement"]["RR@10"]
        assert agreement["optimism"]["value"] == pytest.approx(
            np.mean(expected(ids)) - np.mean(expected(kept["full"]))
        )
        assert agreement["best"] == int(np.argmax(np.round(expected(ids), 12)))
        assert set(row["seconds"]) == {"restore", "queries", "passages", "search", "total"}
    full = rows["full"]
    assert (full["share_of_time"], full["agreement"]["nDCG@10"]["tau"]["value"]) == (
        1.0,
        pytest.approx(1.0),
    )
    assert full["agreement"]["nDCG@10"]["regret"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (place.output / "fidelity.png").read_bytes().startswith(b"\x89PNG")
    picture = (place.output / "fidelity.svg").read_text()
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert "run:depth@bm25" in picture
    assert not list(place.output.glob(".*"))
    assert "RR@10 over 4 checkpoints and 4 queries" in ran.stdout
    assert "run:depth=2@bm25" in ran.stdout


def test_the_lowest_average_rank_is_best(place, tmp_path):
    ran = place.start("--strategy=random:size=4", measures="AvgRank", output_dir=tmp_path)
    assert ran.returncode == 0, ran.stderr
    (full, part) = json.loads((tmp_path / "fidelity.json").read_text())["strategies"]
    whole, agreement = full["means"]["AvgRank"], part["agreement"]["AvgRank"]
    assert whole[full["agreement"]["AvgRank"]["best"]] == min(whole)
    assert agreement["regret"]["value"] == pytest.approx(whole[agreement["best"]] - min(whole))


def test_chosen_steps(place, tmp_path):
    ran = place.start("--strategy=random:size=99", steps="4,1,2", output_dir=tmp_path / "some")
    assert ran.returncode == 0, ran.stderr
    assert "--strategy=random:size=99 keeps the whole corpus" in ran.stderr
    report = json.loads((tmp_path / "some" / "fidelity.json").read_text())
    assert report["steps"] == [1, 2, 4]


def test_a_bad_checkpoint_is_left_out(place, tmp_path):
    _save(tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints" / "2").rglob("d/*"):
        path.write_bytes(b"")
    flags = {"checkpoint_dir": tmp_path / "checkpoints", "output_dir": tmp_path / "out"}
    ran = place.start("--strategy=random:size=9", **flags)
    assert ran.returncode == 1, ran.stderr
    assert "step 2 is left out: " in ran.stderr
    report = json.loads((tmp_path / "out" / "fidelity.json").read_text())
    assert (report["steps"], report["left_out"]) == ([1, 3, 4], [2])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--strategy=random:size=1", "--steps=1,2"), "takes 3 checkpoints or more"),
        (("--strategy=random:size=1", "--steps=1,9"), "--steps: 9 is not in"),
        (("--strategy=random:size=1", "--steps=1,x"), "'x' is not a step"),
        ((), "--strategy is not set"),
        (("--strategy=full",), "name another"),
        (("--strategy=run:depth=1",), "needs a run: add --run=PATH"),
        (("--strategy=run:depth=1", "--run=/none.trec"), "there is no such file"),
        (("--strategy=random:size=1", "BM25"), "no --strategy has a run part"),
        (("--strategy=run:depth=1@other", "BM25"), "no --run is named 'other'"),
        (("--strategy=random:size=1@bm25", "BM25"), "it has no run part"),
        (("--strategy=run:depth=1", "EMPTY"), "empty.trec: no line in it"),
        (("--strategy=run:depth=1", "STRANGE"), "none of the passages it names ('x1', …)"),
        (("--strategy=half",), "is none of run:depth=N"),
        (("--strategy=random:size=1", "--rerank=/a.trec"), "--rerank scores no corpus"),
    ],
)
def test_bad_settings_are_refused(place, tmp_path, extra, message):
    extra = [
        place.runs(argument.lower())[0] if argument.isupper() else argument
        for argument in extra
    ]
    assert message in place.refused(*extra, output_dir=tmp_path)


def test_help_lists_own_and_shared_flags():
    command = [sys.executable, "-m", "jaxval.fidelity", "--help"]
    shown = subprocess.run(command, cwd=ROOT, text=True, capture_output=True).stdout
    assert "--strategy" in shown
    assert "--measures" in shown
    assert "--patience" not in shown


def test_the_batch_is_halved_when_the_device_is_out_of_memory(place, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, so that a batch can hold all texts
    monkeypatch.setenv("JAXVAL_TEST_ROOM", "100")
    out = place.root / "small"
    ran = place.start(
        *("--strategy=random:size=3", "--batch_tokens=512"),
        **{"output_dir": out, "encoder": "tests.e2e.small_memory:encoder"},
    )
    assert ran.returncode == 0, ran.stderr
    assert (
        ran.stderr.count("the device is out of memory") == 3
    )  # 256, 128, 64; the size stays halved
    report = json.loads((out / "fidelity.json").read_text())
    whole = expected(world.PASSAGES)
    assert report["strategies"][0]["means"]["RR@10"] == pytest.approx(whole)
