"""What `check` reports, and when it reports each finding."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxval.check import findings, timing
from jaxval.check.check_report import lines
from jaxval.check.checker import run
from jaxval.check.newest import NewestCheckpoint, find_newest
from jaxval.check.probe import choose_sample, rank_sample
from jaxval.check.timing import BatchTiming, TowerTiming
from jaxval.checkpoints.commit import committed
from jaxval.config import Config, Evaluation, Model, Output, Search, Texts, Watching
from jaxval.encoders import folder
from jaxval.encoders.adapter import from_linen
from jaxval.encoders.folder import ModelFolder
from jaxval.errors import UserError
from jaxval.evaluation.encode import Tower, matrix, place
from jaxval.evaluation.plan import EvalSet
from jaxval.metrics.ranks import Judgments
from jaxval.records import DatasetFiles, ParamsPaths
from tests.e2e import world

GOLDENS = Path(__file__).parents[1] / "encoders" / "goldens"
QUERIES = {f"q{number}": text for number, text in enumerate(world.PASSAGES.values())}
QRELS = {f"q{number}": {f"p{number}": 1} for number in range(len(QUERIES))}


class Place:
    """Settings of a run over 25 passages, each with a query that has the same words."""

    def __init__(self, root):
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.texts = {"query_max_len": None, "passage_max_len": None}
        self.search = {"similarity": "cosine"}
        self.config = {}
        self.paths = ParamsPaths()
        self.encoder = "tests.e2e.world:encoder"
        self.tokenizer = world.write_tokenizer(root / "tokenizer")
        self.files = self.write("tiny")

    def write(self, name, passages=world.PASSAGES, queries=QUERIES, qrels=QRELS):
        data = world.write_texts(self.root / name, passages, queries, qrels)
        paths = (data / "corpus.jsonl", data / "queries.jsonl", data / "qrels" / "test.tsv")
        return DatasetFiles(name, *paths)

    def save(self, tree, step=7):
        with ocp.CheckpointManager(self.checkpoints) as manager:
            manager.save(step, args=ocp.args.StandardSave(tree))

    def settings(self):
        out = self.root / "out"
        rest = {"datasets": (self.files,), "batch_tokens": 256} | self.config
        search = {"depth": 10, "measures": ("RR@10",)} | self.search
        texts = {"passage_template": "{text}", "token_dir": out / "tokens"} | self.texts
        model = Model(
            factory=self.encoder, tokenizer=str(self.tokenizer), params_paths=self.paths
        )
        return Config(
            watching=Watching(str(self.checkpoints), out / "pins"),
            evaluation=Evaluation(
                model=model, texts=Texts(**texts), search=Search(**search), **rest
            ),
            output=Output(out),
        )

    def check(self, silent, devices=2):
        return run(self.settings(), lambda: jax.devices()[:devices], silent)


def words(table):
    return {"params": {"words": {"embedding": table}}}


@pytest.fixture
def planned(tmp_path):
    place = Place(tmp_path)
    place.save(words(world.table(3)))
    return place


def findings_of(report):
    return [str(finding) for finding in report.findings]


# The report


def test_valid_settings_give_no_finding_and_only_tokens_are_written(planned, silent):
    report = planned.check(silent)
    assert (findings_of(report), report.status) == ([], 0)
    text = "\n".join(lines(report))
    for part in (
        f"step 7 (1 committed): {planned.checkpoints / '7'}",
        "at default/params",
        "1 arrays with 56 float32 values",
        "words/embedding [14, 4] float32",
        "best by         RR@10 on tiny",
        "25 of 4 tokens on average, at most 64; 0 (0.0%) are truncated",
        "texts per width: 8:25",
        "25 queries and 25 passages encoded: dimension 4",
        "nDCG@10 1.000 on this sample",
        "2 cpu",
        "256 tokens per device",
    ):
        assert part in text
    assert text.endswith("no problems found")
    assert [path.name for path in (planned.root / "out").iterdir()] == ["tokens"]


def test_padding_and_batches_are_those_of_a_validation(planned, silent):
    report = planned.check(silent)
    (set_report,) = report.sets
    assert set_report.queries.shapes == {(32, 8): 1}  # 25 texts of 4 tokens on two devices
    assert set_report.queries.padding == pytest.approx(1 - 25 * 4 / (32 * 8))


def test_memory_is_estimated_from_the_parameters_and_the_program(planned, silent):
    report = planned.check(silent, devices=4)
    assert report.device.params == 14 * 4 * 4
    assert report.device.batch > 0
    assert report.host.prefetched == 2 * report.device.params
    assert report.host.peak > 2**26
    assert report.host.available > 0


def test_without_a_checkpoint_everything_else_is_inspected(planned, silent):
    shutil.rmtree(planned.checkpoints)
    report = planned.check(silent)
    (finding,) = findings_of(report)
    assert finding.startswith(f"error: no checkpoint is committed in {planned.checkpoints}")
    assert finding.endswith("start the training, then check again")
    assert report.status == 2
    text = "\n".join(lines(report))
    assert f"none committed in {planned.checkpoints}" in text
    assert "1 arrays with 56 float32 values" in text
    assert "  total  " in text


def test_parameters_that_do_not_fit_are_an_error(planned, silent):
    planned.encoder = "tests.e2e.other:encoder"
    report = planned.check(silent)
    (finding,) = findings_of(report)
    assert "words/embedding" in finding
    assert "`params_path" in finding
    assert report.status == 2


def test_parameters_that_are_not_finite(planned, silent):
    planned.save(words(np.full((14, 4), np.nan, np.float32)), step=8)
    report = planned.check(silent)
    (finding,) = findings_of(report)
    assert "checkpoint 8" in finding
    assert "NaN" in finding
    assert report.status == 2


def test_if_the_newest_checkpoint_is_deleted_the_next_one_is_read(planned, silent):
    plan = planned.check(silent).plan
    gone = committed(planned.checkpoints)[0]
    planned.save(words(world.table(5)), step=9)
    listings = iter([[dataclasses.replace(gone, commit_ns=1)], committed(planned.checkpoints)])
    newest = find_newest(str(planned.checkpoints), plan, lambda directory: next(listings))
    assert (newest.checkpoint.step, newest.count, newest.error) == (9, 2, None)
    table = newest.restored.params["words"]["embedding"]
    np.testing.assert_array_equal(table, world.table(5))


def test_a_checkpoint_without_read_permission():
    newest = NewestCheckpoint("/place", 1, error=PermissionError(13, "Permission denied"))
    (finding,) = findings.unreadable(newest)
    assert finding.error
    assert "/place cannot be read: [Errno 13] Permission denied: check its" in finding.text


def test_invalid_settings_raise_a_user_error(planned, silent):
    planned.search["measures"] = ("Nonsense",)
    with pytest.raises(UserError, match="Nonsense"):
        planned.check(silent)


def test_every_set_is_inspected_and_timed_by_corpus(planned, silent):
    half = {f"q{number}": QUERIES[f"q{number}"] for number in range(20)}
    other = planned.write("half", queries=half, qrels={query: QRELS[query] for query in half})
    few = dict(list(world.PASSAGES.items())[::-1])
    planned.config["datasets"] = (planned.files, other, planned.write("turned", passages=few))
    report = planned.check(silent)
    assert [set_report.name for set_report in report.sets] == ["tiny", "half", "turned"]
    assert [corpus.datasets for corpus in report.times.corpora] == [
        ("tiny", "half"),
        ("turned",),
    ]
    assert findings_of(report) == []


def test_with_confirm_both_times_are_reported(planned, silent):
    few = {id_: world.PASSAGES[id_] for id_ in list(world.PASSAGES)[:24]}
    planned.config |= {
        "datasets": (planned.write("few", few), planned.files),
        "confirm": "best",
    }
    text = "\n".join(lines(planned.check(silent)))
    assert "s if screened out, " in text
    assert "best by         RR@10 on tiny" in text


def test_with_rerank_the_candidates_are_reported(planned, silent):
    run_file = planned.root / "run.trec"
    run_file.write_text("".join(f"q{n} Q0 p{n} 1 1 t\nq{n} Q0 p0 2 0 t\n" for n in range(25)))
    planned.search["rerank"] = run_file
    report = planned.check(silent)
    assert report.sets[0].candidates == pytest.approx(49 / 25)
    assert "2 candidates per query; other passages are not encoded" in "\n".join(lines(report))
    assert report.times.corpora[0].search == 0


# The findings


def test_truncated_queries_and_passages(planned, silent):
    planned.texts |= {"query_max_len": 3, "passage_max_len": 3}
    queries, passages = findings_of(planned.check(silent))
    assert queries.startswith("warning: tiny: 25 of 25 queries are truncated to 3 tokens")
    assert queries.endswith(
        "set `query_max_len` to the value of the training, or to a higher one"
    )
    assert passages.startswith("warning: tiny: 25 of 25 passages reach the limit of 3 tokens")


def test_queries_at_the_limit_are_not_truncated(planned, silent):
    planned.texts["query_max_len"] = 4
    report = planned.check(silent)
    assert (report.sets[0].queries.store.full, report.sets[0].queries.truncated) == (25, 0)
    assert (findings_of(report), report.status) == ([], 0)


def test_nearly_identical_vectors(planned, silent):
    planned.save(words(np.ones((14, 4), np.float32) + world.table(3) / 100), step=8)
    report = planned.check(silent)
    assert [finding.partition("vectors of ")[2][:15] for finding in findings_of(report)] == [
        "25 queries are ",
        "25 passages are",
    ]
    assert "`pooling`" in findings_of(report)[0]
    assert report.status == 2


def test_zero_vectors(planned, silent):
    planned.save(words(np.zeros((14, 4), np.float32)), step=8)
    report = planned.check(silent)
    assert "25 of 25 vectors of queries are all zeros" in findings_of(report)[0]
    assert report.status == 2


def test_a_random_ranking(planned, silent):
    turned = {f"q{number}": {f"p{(number + 12) % 25}": 1} for number in range(25)}
    planned.files = planned.write("turned", qrels=turned)
    report = planned.check(silent)
    (finding,) = findings_of(report)
    assert finding.startswith("error: turned: nDCG@10 is 0.")
    assert "random rankings reach" in finding
    assert report.status == 2


def test_a_similarity_other_than_the_trainings(planned, silent):
    planned.search["similarity"] = "dot"
    lengthy = world.table(3)
    lengthy[4] *= 5  # whatever is red scores high for every query
    planned.save(words(lengthy), step=8)
    (finding,) = findings_of(planned.check(silent))
    assert finding.startswith("warning: tiny: the vectors are not of unit length")
    assert "`similarity=cosine` ranks better than dot" in finding


def test_last_token_pooling_without_a_closing_token(tiny_tokenizer):
    bare = dataclasses.replace(tiny_tokenizer, closing=())
    last = ModelFolder(Path(), None, "mistral", pooling="last")
    mean = ModelFolder(Path(), None, "mistral", pooling="mean")
    (finding,) = findings.missing_closing_token(last, None, bare)
    assert "set add_eos_token in tokenizer_config.json" in str(finding)
    assert str(finding).startswith("warning: ")
    assert len(findings.missing_closing_token(mean, "last", bare)) == 1
    assert findings.missing_closing_token(last, "mean", bare) == []
    assert findings.missing_closing_token(last, None, tiny_tokenizer) == []
    assert findings.missing_closing_token(None, None, bare) == []


def test_a_tokenizer_with_more_ids_than_any_array_has_rows(tiny_tokenizer):
    (finding,) = findings.small_embedding({"words": np.zeros((29, 4))}, tiny_tokenizer)
    assert "has ids up to 29, and no array of the encoder has more than 29 rows" in str(finding)
    assert findings.small_embedding({"words": np.zeros((30, 4))}, tiny_tokenizer) == []


def test_two_identical_towers(planned, silent):
    tower = words(world.table(3))["params"]
    planned.save({"query_encoder": tower, "ctx_encoder": tower}, step=8)
    report = planned.check(silent)
    (finding,) = findings_of(report)
    assert finding.startswith(
        "warning: the two towers have the same parameters (default/query_encoder"
    )
    assert "  towers          a tree for each" in list(lines(report))
    assert report.device.params == 2 * 14 * 4 * 4


def test_two_different_towers_give_no_finding(planned, silent):
    towers = {"query_encoder": world.table(3), "ctx_encoder": world.table(3) * 2}
    trees = {name: words(table)["params"] for name, table in towers.items()}
    planned.save(trees, step=8)
    assert findings_of(planned.check(silent)) == []


def poisoned():
    """Returns an encoder whose vectors are NaN although its parameters are finite."""

    class Poisoned(nn.Module):
        @nn.compact
        def __call__(self, ids, mask):
            return nn.Embed(14, 4, name="words")(ids).sum(1) * jnp.nan

    return from_linen(Poisoned())


def test_vectors_that_are_not_finite(planned, silent):
    planned.encoder = "tests.check.test_check:poisoned"
    report = planned.check(silent)
    (finding,) = findings_of(report)
    assert finding.startswith("error: tiny: the encoder made vectors with NaN")
    assert report.status == 2


@pytest.fixture
def model(tmp_path):
    return Path(shutil.copytree(GOLDENS / "bert", tmp_path / "model"))


def missing_prefixes(model, *prefixes, name="my/model"):
    read = folder.read(str(model))
    return [finding.text for finding in findings.missing_prefixes(read, name, *prefixes)]


def test_prompts_of_the_model_folder_that_are_not_set(model):
    prompts = {"prompts": {"query": "ask: ", "document": ""}}
    (model / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert missing_prefixes(model, "ask: ", "") == []
    (text,) = missing_prefixes(model, "", "")
    assert "`query_prefix` is empty, but the model folder's prompt is 'ask: '" in text
    assert 'set `query_prefix="ask: "`' in text


@pytest.mark.parametrize("name", ["intfloat/e5-base-v2", "multilingual-e5-small", "my_E5"])
def test_e5_without_its_prefixes(model, name):
    assert len(missing_prefixes(model, "", "", name=name)) == 2
    assert missing_prefixes(model, "query: ", "passage: ", name=name) == []


@pytest.mark.parametrize("name", ["bge5", "intfloat/e5-mistral-7b-instruct", "base"])
def test_names_of_other_models(model, name):
    assert missing_prefixes(model, "", "", name=name) == []


def test_the_base_model_of_a_fine_tuned_model_counts(model):
    config = json.loads((model / "config.json").read_text())
    config["_name_or_path"] = "intfloat/e5-small"
    (model / "config.json").write_text(json.dumps(config))
    assert len(missing_prefixes(model, "", "passage: ")) == 1


def test_normalization_that_the_user_turned_off(model):
    read = folder.read(str(model))
    assert read.normalize
    assert findings.missing_normalization(read, None, "dot") == []
    assert findings.missing_normalization(read, False, "cosine") == []
    (finding,) = findings.missing_normalization(read, False, "dot")
    assert "`similarity=cosine`" in finding.text


def test_too_little_memory(planned, silent):
    report = planned.check(silent)
    assert findings.too_little_memory(report.device, report.host) == []
    device = dataclasses.replace(report.device, limit=report.device.params)
    host = dataclasses.replace(report.host, available=0)
    texts = [finding.text for finding in findings.too_little_memory(device, host)]
    assert ["`batch_tokens`" in texts[0], "`host_checkpoints`" in texts[1]] == [True, True]


def test_a_batch_that_had_to_be_halved():
    assert findings.reduced_batch(64, 64) == []
    (finding,) = findings.reduced_batch(1024, 256)
    assert "set `batch_tokens=256`" in finding.text


def test_pins_on_another_file_system(tmp_path):
    assert findings.impossible_pins(str(tmp_path / "later"), tmp_path / "out" / "pins") == []
    assert findings.impossible_pins("gs://bucket/run", tmp_path) == []
    (finding,) = findings.impossible_pins("/proc", tmp_path)
    assert f"`pin_dir={tmp_path}" in finding.text


def test_errors_come_last_and_are_counted(planned, silent):
    planned.texts["query_max_len"] = 3
    planned.save(words(np.full((14, 4), np.nan, np.float32)), step=8)
    *_, verdict, first, second = lines(planned.check(silent))
    assert verdict == "1 error and 1 warning"
    assert (first[:8], second[:6]) == ("warning:", "error:")


# The sample


def judged_set(store, qrels, queries):
    """Returns a set whose documents are named by their rows; others are not in the corpus."""
    documents = {document for grades in qrels.values() for document in grades}
    rows = {document: int(document) for document in documents if document.isdigit()}
    judgments = Judgments.from_qrels(qrels, tuple(qrels), rows)
    return EvalSet("set", "series", store(queries), tuple(qrels), judgments)


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def test_a_part_of_a_store_gives_the_same_vectors_as_the_store(store, silent):
    texts = [" ".join(LETTERS[: 1 + number * 7 % 25]) for number in range(90)]
    whole = store(texts)
    qrels = {f"q{number}": {str(number): 1} for number in range(0, 90, 3)}
    sample = choose_sample(judged_set(store, qrels, texts[::3]), whole, size=40)
    table = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)

    def encode(params, ids, mask):
        return (params[ids] * mask[..., None]).sum(1)

    tower = Tower(encode, jax.devices()[:4], 64)
    params = place(table, jax.devices()[:4])
    vectors = matrix(tower.chunks(params, whole, silent()), whole.count)
    part = matrix(tower.chunks(params, sample.passages, silent()), sample.passages.count)
    np.testing.assert_allclose(part, vectors[sample.passages.store_rows], rtol=1e-6)


def test_a_sample_holds_the_best_passage_of_each_query(store):
    texts = [f"{a} {b}" for a in LETTERS for b in LETTERS[:8]]
    qrels = {
        f"q{number}": {str(2 * number): 1, str(2 * number + 1): 2, "outside:x": 3, "0": 0}
        for number in range(100)
    }
    corpus = store(texts)
    sample = choose_sample(judged_set(store, qrels, texts[:100]), corpus)
    assert (sample.queries.count, sample.passages.count) == (64, 64)
    queries, passages = sample.queries.store_rows, sample.passages.store_rows
    judgments = sample.judgments
    best = judgments.grade == 2
    assert judgments.query[best].tolist() == list(range(64))
    np.testing.assert_array_equal(passages[judgments.row[best]], 2 * queries + 1)
    assert (queries.min(), queries.max()) == (0, 99)


def test_the_other_passages_of_a_sample_are_spread_over_the_corpus(store):
    corpus = store([f"{a} {b}" for a in LETTERS for b in LETTERS])
    sample = choose_sample(judged_set(store, {"q0": {"5": 1}}, ["a"]), corpus)
    places = np.sort(sample.passages.store_rows)
    assert len(set(places.tolist())) == 64
    assert 5 in places
    assert np.diff(places).max() < 2 * corpus.count / 63


def test_a_set_without_a_relevant_passage_in_the_corpus_is_not_ranked(store):
    corpus = store(["a", "b"])
    sample = choose_sample(judged_set(store, {"q0": {"outside:x": 1}}, ["a"]), corpus)
    assert (sample.queries.count, sample.passages.count) == (1, 2)
    vectors = np.eye(2, dtype=np.float32)
    assert rank_sample(sample, vectors[:1], vectors, "dot", "float32") is None


def ranked(store, queries, count=64):
    corpus = store([f"{a} {b}" for a in LETTERS for b in LETTERS[:4]])
    qrels = {f"q{number}": {str(number): 1} for number in range(count)}
    sample = choose_sample(judged_set(store, qrels, ["a b"] * count), corpus)
    passages = np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32)
    order = np.argsort(sample.passages.store_rows)  # passage n answers query n
    return rank_sample(sample, queries(passages[order][:count]), passages, "cosine", "float32")


def test_chance_is_the_mean_of_random_rankings(store):
    good = ranked(store, lambda answers: answers)
    assert good.mean == 1
    by_hand = (1 / np.log2(np.arange(2, 12))).sum() / 64
    assert good.chance == pytest.approx(by_hand, rel=0.1)
    assert good.chance < good.luck < 0.2
    assert findings.random_ranking("set", good, 64) == []
    rng = np.random.default_rng(2)
    blind = ranked(store, lambda answers: rng.normal(size=answers.shape).astype(np.float32))
    assert len(findings.random_ranking("set", blind, 64)) == 1


def test_too_few_queries_give_no_finding(store):
    blind = ranked(store, lambda answers: -answers, count=8)
    assert (blind.mean, blind.luck) == (0, 1)
    assert findings.random_ranking("set", blind, 64) == []


def test_mean_cosine_by_hand():
    vectors = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    assert findings.mean_cosine(vectors) == pytest.approx((0 + 2 * np.sqrt(0.5)) / 3)
    assert findings.mean_cosine(vectors[:1]) == 0


# The time


def test_seconds_are_summed_over_batches_and_interpolated_by_width():
    timed = {(32, 8): BatchTiming(1.0, 0.5, 4), (8, 32): BatchTiming(2.0, 1.0, 4)}
    shapes = Counter({(32, 8): 3, (8, 32): 1, (16, 16): 2, (8, 8): 1})
    tower = TowerTiming(shapes, timed)
    rates = 0.5 / 256, 1.0 / 256
    between = rates[0] + (16 - 8) / (32 - 8) * (rates[1] - rates[0])
    expected = 3 * 0.5 + 1.0 + 2 * 256 * between + 64 * rates[0]
    assert tower.seconds(shapes) == pytest.approx(expected)
    assert tower.untimed == 2


def test_a_busy_machine_is_reported(planned, silent):
    assert timing.high_load(lambda: (2.0, 0.0, 0.0), cores=8) is None
    assert timing.high_load(lambda: (12.0, 0.0, 0.0), cores=8) == 1.5
    report = planned.check(silent)
    times = dataclasses.replace(report.times, load=1.5)
    text = "\n".join(lines(dataclasses.replace(report, times=times)))
    assert "uncertain       other processes used the machine: load average 1.5 per core" in text


def test_a_tower_runs_the_shapes_that_it_predicts(store, silent):
    texts = store([" ".join(LETTERS[: 1 + number * 7 % 25]) for number in range(300)])
    encode = lambda params, ids, mask: mask.sum(1, keepdims=True)  # noqa: E731
    tower, ran = Tower(encode, jax.devices()[:2], 256), Counter()
    run_it = tower.run

    def counting(params, ids, lengths):
        ran[(ids.shape[0] * ids.shape[1], ids.shape[2])] += 1
        return run_it(params, ids, lengths)

    tower.run = counting
    list(tower.chunks({}, texts, silent()))
    assert len(ran) > 1
    assert ran == tower.shapes(texts)
