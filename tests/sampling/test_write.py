"""jaxval.sample as a process, and its use of memory."""

import gzip
import hashlib
import json
import subprocess
import sys
import tracemalloc

import pytest

from jaxval.corpus import datasets, readers
from jaxval.sampling import strategies
from jaxval.sampling.write import write_sample

CORPUS = {f"d{number}": f"word{number} both" for number in range(20)}
QUERIES = {"q": "word3", "r": "word4 both", "unjudged": "word5"}
QRELS = {"q": {"d0": 1, "d1": 0}, "r": {"d0": 2}}
RUN = "q Q0 d9 2 1.5 t\n\n  q Q0 d8 1 1.5 t \nq Q0 d7 3 1.5 t\nr Q0 d6 1 1.5 t\n"


@pytest.fixture
def world(beir, tmp_path):
    """A folder with a validation set and a run."""
    beir("set", CORPUS, QUERIES, QRELS)
    (tmp_path / "run.trec").write_text(RUN)
    return World(tmp_path)


class World:
    def __init__(self, root):
        self.root = root
        self.output = root / "sample"

    def start(self, strategy, *extra, **flags):
        given = {
            "dataset": f"dev:{self.root / 'set'}",
            "strategy": strategy,
            "output_dir": self.output,
        }
        listed = [f"--{name}={value}" for name, value in (given | flags).items()]
        command = [sys.executable, "-m", "jaxval.sample", *listed, *extra]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.root)

    def write(self, name, content):
        path = self.root / name
        path.write_text(content)
        return path

    def ids(self):
        return [text.id for text in readers.read_texts(self.output / "corpus.jsonl")]

    def warnings(self, ran):
        assert ran.returncode == 0, ran.stderr
        return [line.partition(" ")[2] for line in ran.stderr.splitlines()]

    def refusal(self, ran):
        assert (ran.returncode, ran.stdout) == (2, "")
        assert not self.output.exists()
        assert not list(self.root.glob(".*partial"))
        (line,) = [line for line in ran.stderr.splitlines() if line.startswith("jaxval: ")]
        assert ran.stderr.endswith(f"{line}\n")
        return line.removeprefix("jaxval: ")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Output


def test_a_run_by_hand(world):
    ran = world.start("run:depth=2", "--run=run.trec")
    assert world.warnings(ran) == [
        "dev: 1 of 3 queries have no judgment: no passages are selected for them"
    ]
    assert ran.stdout == (
        f"wrote {world.output}: 5 of 20 passages, 2 of them judged, and 2 judged queries\n"
    )
    assert world.ids() == ["d0", "d1", "d6", "d8", "d9"]
    manifest = json.loads((world.output / "manifest.json").read_text())
    assert (manifest["strategy"], manifest["seed"]) == ("run:depth=2", 0)
    assert manifest["counts"] == {
        "corpus": 20,
        "passages": 5,
        "judged": 2,
        "queries": 2,
        "judgements": 3,
    }
    assert manifest["inputs"]["corpus"] == readers.digest(world.root / "set" / "corpus.jsonl")


def test_a_sample_is_a_validation_set_with_the_same_queries(world):
    assert world.start("random:size=3").returncode == 0
    whole, sampled = (
        datasets.parse(f"dev:{folder}") for folder in (world.root / "set", world.output)
    )
    assert datasets.load_queries(sampled) == datasets.load_queries(whole)
    assert list(readers.read_texts(sampled.queries)) == list(readers.read_texts(whole.queries))
    originals = {text.id: text for text in readers.read_texts(whole.corpus)}
    texts = list(readers.read_texts(sampled.corpus))
    assert texts == [originals[text.id] for text in texts]
    assert len(texts) == 2 + 3


def test_strategies_can_be_joined_and_bm25_needs_no_run(world):
    ran = world.start("bm25:depth=1+run:depth=1", "--run", "run.trec", "--run=run.trec")
    world.warnings(ran)
    assert world.ids() == ["d0", "d1", "d3", "d4", "d6", "d8"]
    assert json.loads((world.output / "manifest.json").read_text())["strategy"] == (
        "run:depth=1+bm25:depth=1"
    )


def test_full_is_the_corpus_in_beirs_format(world):
    ran = world.start("full")
    assert "20 of 20 passages" in ran.stdout
    assert world.ids() == list(CORPUS)


def test_formats_and_line_order_do_not_change_the_sample(world):
    tsv = "".join(f"{id_}\t{text}\n" for id_, text in CORPUS.items())
    (world.root / "c.tsv.gz").write_bytes(gzip.compress(tsv.encode()))
    shuffled = world.write("run2", "".join(f"{line}\n" for line in RUN.split("\n")[::-1]))
    other = world.root / "other"
    dataset = f"dev:{world.root / 'set'},corpus={world.root / 'c.tsv.gz'}"
    strategy = "run:depth=2+random:size=4"
    first = world.start(strategy, "--run=run.trec", seed=5)
    second = world.start(
        strategy, f"--run={shuffled}", seed=5, dataset=dataset, output_dir=other
    )
    assert (first.returncode, second.returncode) == (0, 0)
    mine, theirs = content(world.output), content(other)
    del mine["manifest.json"], theirs["manifest.json"]
    assert mine == theirs


def test_token_ids_stay_token_ids(world):
    lines = [json.dumps({"text_id": f"d{number}", "text": [number, 7]}) for number in range(20)]
    corpus = world.write("tokens.json", "\n".join(lines))
    ran = world.start("random:size=1", dataset=f"dev:{world.root / 'set'},corpus={corpus}")
    assert ran.returncode == 0
    texts = list(readers.read_texts(world.output / "corpus.jsonl"))
    assert [(text.id, text.text) for text in texts[:2]] == [("d0", (0, 7)), ("d1", (1, 7))]


# A second start


def test_a_second_start_does_nothing(world):
    assert world.start("random:size=3").returncode == 0
    before = content(world.output), world.output.stat().st_ino
    ran = world.start("random:size=3")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"{world.output} holds this sample already: nothing to do\n"
    assert (content(world.output), world.output.stat().st_ino) == before


@pytest.mark.parametrize(
    ("strategy", "flags", "what"),
    [
        ("random:size=4", {}, "strategy random:size=3, not random:size=4"),
        ("random:size=3", {"seed": 1}, "seed 0, not 1"),
        ("random:size=3", {"dataset": "dev:set,corpus=c.tsv"}, "other corpus"),
    ],
)
def test_another_sample_is_not_overwritten(world, strategy, flags, what):
    world.write("c.tsv", "d0\tx\nd1\ty\n")
    assert world.start("random:size=3").returncode == 0
    before = content(world.output)
    ran = world.start(strategy, **flags)
    assert ran.returncode == 2
    assert ran.stderr == (
        f"jaxval: --output_dir={world.output} holds another sample ({what}):"
        " name a new folder, or remove this\n"
    )
    assert content(world.output) == before


# Warnings


def test_unusable_parts_of_a_run_are_warned_of(world):
    run = world.write("odd", "q d8 1\nq x1 2\nq x2 3\nother d5 1\n")
    ran = world.start("run:depth=9", f"--run={run}")
    assert world.warnings(ran)[1:] == [
        f"{run}: 1 of its queries are not judged and are left out",
        f"{run}: 1 of 2 judged queries are not in it",
        f"{run}: it ranks at most 3 passages per query, fewer than run:depth=9 selects",
        f"{run}: 2 of 3 passages are not in the corpus and are left out",
    ]
    assert world.ids() == ["d0", "d1", "d8"]


def test_judgments_without_text_or_passage_are_warned_of(world):
    path = world.root / "set" / "qrels" / "test.tsv"
    path.write_text(path.read_text() + "q\tx9\t1\ngone\td7\t1\n")
    ran = world.start("random:size=1")
    assert world.warnings(ran)[1:] == [
        "dev: 1 queries of the qrels have no text and are left out",
        "dev: 1 of 3 judged documents are not in the corpus and count as never found",
    ]
    assert "x9" in (world.output / "qrels" / "test.tsv").read_text()


def test_a_random_part_larger_than_the_corpus_is_warned_of(world):
    ran = world.start("random:size=19")
    assert world.warnings(ran)[1:] == [
        "dev: random:size=19 exceeds the 18 unjudged passages: all are in the sample"
    ]
    assert world.ids() == list(CORPUS)


# Errors


def nothing(world):
    pass


def empty_run(world):
    world.write("run.trec", "\n")


def strange_run(world):
    world.write("run.trec", "q x1 1\nr x2 1\n")


def other_queries(world):
    world.write("run.trec", "s d1 1\n")


def broken_run(world):
    world.write("run.trec", "q d1 first\n")


def no_run(world):
    (world.root / "run.trec").unlink()


def no_judged(world):
    (world.root / "set" / "qrels" / "test.tsv").write_text("q\tx1\t1\n")


def no_queries(world):
    (world.root / "set" / "qrels" / "test.tsv").write_text("s\td1\t1\n")


def twice(world):
    path = world.root / "set" / "corpus.jsonl"
    path.write_text(path.read_text() + '{"_id": "d9", "text": "again"}\n')


def broken_line(world):
    path = world.root / "set" / "corpus.jsonl"
    path.write_text(path.read_text() + '{"_id": "d20"\n')


@pytest.mark.parametrize(
    ("spoil", "flags", "message"),
    [
        (nothing, {"strategy": ""}, "--strategy is not set"),
        (nothing, {"output_dir": ""}, "--output_dir is not set"),
        (nothing, {"dataset": ""}, "--dataset=: "),
        (nothing, {"dataset": "dev"}, "--dataset=dev: no path: "),
        (nothing, {"strategy": "some"}, "--strategy=some: 'some' is none of run:depth=N, "),
        (nothing, {"strategy": "dense:depth=9"}, "dense:depth=9 needs --dense_step=STEP"),
        (nothing, {"dense_step": 3}, "--dense_step=3: no --strategy has a dense part"),
        (
            nothing,
            {"strategy": "dense:depth=9", "dense_step": 3},
            "--checkpoint_dir is not set",
        ),
        (nothing, {"strategy": "full"}, "--strategy=full takes no --run: add run:depth=N"),
        (nothing, {"seed": -1}, "--seed=-1: "),
        (empty_run, {}, "run.trec: no line in it: write lines of "),
        (strange_run, {}, "run.trec: none of the passages it names ('x1', …) is in "),
        (
            other_queries,
            {},
            "none of its queries ('s', …) is among the judged queries ('q', …)",
        ),
        (broken_run, {}, "run.trec:1: 'first' is not a rank: "),
        (no_run, {}, "run.trec: No such file or directory"),
        (no_judged, {}, "--dataset=dev: none of the judged documents is in "),
        (no_queries, {}, "test.tsv: queries without qrels: none of its queries ('s', …)"),
        (twice, {}, "corpus.jsonl:21): ids must be unique, remove or rename one"),
        (broken_line, {}, "corpus.jsonl:21: broken JSON"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(world, spoil, flags, message):
    spoil(world)
    ran = world.start(flags.pop("strategy", "run:depth=2"), "--run=run.trec", **flags)
    assert message in world.refusal(ran)


def test_a_run_part_without_a_run_is_refused(world):
    line = world.refusal(world.start("run:depth=2"))
    assert line == "--strategy=run:depth=2 needs a run: add --run=PATH"


def test_a_missing_bm25s_is_named_before_anything_is_read(world):
    (world.root / "bm25s").mkdir()
    (world.root / "set" / "corpus.jsonl").write_text("broken")
    script = "import sys; sys.modules['bm25s'] = None; sys.argv[0] = 'sample'\n"
    script += "import runpy; runpy.run_module('jaxval.sample', run_name='__main__')"
    flags = ["--strategy=bm25:depth=1", f"--dataset=dev:{world.root / 'set'}"]
    command = [sys.executable, "-c", script, *flags, f"--output_dir={world.output}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert world.refusal(ran) == "bm25 needs the package bm25s: pip install 'jaxval[sample]'"


# Help and memory


def test_help_is_grouped():
    command = [sys.executable, "-m", "jaxval.sample", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True)
    heads = [line for line in ran.stdout.splitlines() if line.endswith(":") and line[0] != " "]
    own = ["What is sampled:", "How:", "Output:", "Checkpoint of dense:depth=N:"]
    assert (ran.returncode, heads[:4]) == (0, own)
    assert "--patience" not in ran.stdout
    assert ran.stdout.startswith("Writes a sample of a corpus")


class Bar:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, n):
        pass


@pytest.mark.parametrize("strategy", ["random:size=10", "run:depth=1", "full"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, beir, strategy):
    folder = beir("set", queries=QUERIES, qrels=QRELS)
    text = "x" * 1000
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(10_000):
            file.write(json.dumps({"_id": f"d{number}", "text": f"{number} {text}"}) + "\n")
    run = tmp_path / "run"
    run.write_text("q d7 1\n")
    arguments = (
        datasets.parse(f"dev:{folder}"),
        strategies.parse(strategy),
        [run] if strategy.startswith("run") else [],
        0,
        tmp_path / "sample",
        lambda label, total: Bar(),
    )
    tracemalloc.start()
    try:
        write_sample(*arguments)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3.5 * 2**20  # the corpus has 10 MiB, and blocks of 1 MiB are read


def test_random_draws_the_smallest_keyed_hashes(world):
    assert world.start("random:size=5", seed=3).returncode == 0

    def hashed(id_):
        key = b"\0\0\0\0\0\0\0\3"
        return hashlib.blake2b(id_.encode(), digest_size=8, key=key).hexdigest()

    drawn = sorted(set(CORPUS) - {"d0", "d1"}, key=hashed)[:5]
    assert set(world.ids()) == {"d0", "d1", *drawn}
