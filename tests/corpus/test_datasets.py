import gzip
import json
import re
from pathlib import Path

import pytest

from jaxval.corpus import datasets
from jaxval.errors import DataError, UserError
from jaxval.records import DatasetFiles, Text

BEIR = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def refused(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        datasets.parse(spec)
    assert str(caught.value).startswith(f"`dataset={spec}`: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# parse


def test_beir_folder(tmp_path):
    folder = make(tmp_path, *BEIR)
    corpus, queries, qrels = (folder / name for name in BEIR)
    assert datasets.parse(f"sci.fact-1_0:{folder}") == DatasetFiles(
        "sci.fact-1_0", corpus, queries, qrels
    )


@pytest.mark.parametrize(
    "names",
    [
        ("corpus.tsv.gz", "queries.json", "qrels.trec"),
        ("collection.tsv", "queries.tsv", "qrels.txt.gz"),
        ("corpus.json.gz", "queries.jsonl.gz", "qrels/dev.tsv"),
        ("corpus", "queries.tsv.gz", "qrels/test.tsv.gz"),
    ],
)
def test_other_names_in_a_folder(tmp_path, names):
    make(tmp_path, *(name for name in names if name != "corpus"), "qrels/.hidden")
    if "corpus" in names:
        make(tmp_path, "corpus/0.jsonl")
    assert datasets.parse(f"a:{tmp_path}") == DatasetFiles("a", *(tmp_path / n for n in names))


def test_the_test_split_is_preferred_among_several_qrels(tmp_path):
    make(tmp_path, *BEIR, "qrels/dev.tsv", "qrels.tsv")
    assert datasets.parse(f"a:{tmp_path}").qrels == tmp_path / "qrels/test.tsv"


def test_separate_files(tmp_path):
    make(tmp_path, "c.tsv", "q,1.tsv", "r.trec")
    spec = f"a:qrels={tmp_path}/r.trec,corpus={tmp_path}/c.tsv,queries={tmp_path}/q,1.tsv"
    expected = DatasetFiles("a", tmp_path / "c.tsv", tmp_path / "q,1.tsv", tmp_path / "r.trec")
    assert datasets.parse(spec) == expected


def test_a_named_file_replaces_the_folders_file(tmp_path):
    folder = make(tmp_path / "lr=1,b:2", *BEIR, "qrels/dev.tsv")
    files = datasets.parse(f"a:{folder},qrels={folder}/qrels/dev.tsv")
    assert (files.corpus, files.qrels) == (folder / "corpus.jsonl", folder / "qrels/dev.tsv")


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(make(tmp_path, *BEIR)))
    assert datasets.parse("a:~").corpus == tmp_path / "corpus.jsonl"


@pytest.mark.parametrize("spec", ["", "nq", "nq:", "/data/nq"])
def test_a_spec_without_a_path_is_refused(spec):
    assert "no path: write NAME:FOLDER or NAME:corpus=PATH," in refused(spec)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "é"])
def test_a_name_that_cannot_name_a_folder_is_refused(name, tmp_path):
    assert f"the name {name!r} cannot name a folder: use letters" in refused(
        f"{name}:{tmp_path}"
    )


@pytest.mark.parametrize("rest", ["{0}/no", "{0},qrels={0}/no", "{0},qrels=", "~nobody-here/x"])
def test_a_missing_path_is_refused(tmp_path, rest):
    message = refused("a:" + rest.format(make(tmp_path, *BEIR)))
    assert "there is no " in message
    assert ": check the path; the form is NAME:FOLDER" in message


@pytest.mark.parametrize(
    ("role", "names", "names_tried"),
    [
        ("corpus", BEIR[1:], "corpus.jsonl, corpus.jsonl.gz,"),
        ("queries", BEIR[::2], "queries.jsonl, queries.jsonl.gz,"),
        ("qrels", BEIR[:2], "qrels/*, qrels.tsv,"),
    ],
)
def test_a_missing_file_in_a_folder_is_named(tmp_path, role, names, names_tried):
    message = refused(f"a:{make(tmp_path, *names)}")
    assert f"no {role} in {tmp_path} (tried {names_tried}" in message
    assert f"add one of these files, or add ,{role}=PATH to the setting" in message


def test_several_qrels_are_listed_with_the_setting_that_selects_one(tmp_path):
    make(tmp_path, *BEIR[:2], "qrels/dev.tsv", "qrels/train.tsv")
    message = refused(f"a:{tmp_path}")
    assert f"several qrels in {tmp_path}/qrels (dev.tsv, train.tsv)" in message
    assert f"choose one by adding ,qrels={tmp_path}/qrels/dev.tsv" in message


def test_separate_files_must_be_all_three(tmp_path):
    make(tmp_path, *BEIR)
    message = refused(f"a:corpus={tmp_path}/corpus.jsonl,qrels={tmp_path}/qrels/test.tsv")
    assert "no queries: add queries=PATH, or name a folder" in message


def test_a_duplicate_role_is_refused(tmp_path):
    make(tmp_path, *BEIR)
    assert "corpus= is given twice: keep one" in refused(
        f"a:corpus={tmp_path},corpus={tmp_path}"
    )


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    make(tmp_path, *BEIR)
    message = refused(f"a:{tmp_path}/corpus.jsonl")
    assert f"{tmp_path}/corpus.jsonl is not a folder: write NAME:FOLDER or" in message


def test_parse_all(tmp_path):
    make(tmp_path, *BEIR)
    both = datasets.parse_all([f"b:{tmp_path}", f"a:{tmp_path}"])
    assert [files.name for files in both] == ["b", "a"]
    with pytest.raises(UserError, match=r"`dataset=a:…`: the name is given twice: rename"):
        datasets.parse_all([f"a:{tmp_path}", f"a:{tmp_path}"])
    with pytest.raises(UserError, match=r"`dataset` is not set: add `dataset=NAME:FOLDER"):
        datasets.parse_all([])


# load_queries


def stored(folder: Path, queries: dict[str, str], qrels: str) -> DatasetFiles:
    lines = (json.dumps({"_id": id, "text": text}) for id, text in queries.items())
    (folder / "queries.jsonl").write_text("\n".join(lines))
    (folder / "qrels.tsv").write_text(qrels)
    paths = (folder / "corpus.tsv", folder / "queries.jsonl", folder / "qrels.tsv")
    return DatasetFiles("a", *paths)


def test_judged_queries_are_kept_in_file_order(tmp_path):
    queries = {"3": "c", "2": "b", "1": "a"}
    loaded = datasets.load_queries(stored(tmp_path, queries, "9 x 1\n1 x 2\n1 y -1\n3 z 0\n"))
    assert loaded.texts == (Text("3", "c"), Text("1", "a"))
    assert loaded.qrels == {"1": {"x": 2, "y": -1}, "3": {"z": 0}}
    assert (loaded.name, loaded.unjudged, loaded.unknown_queries) == ("a", 1, 1)


def test_the_digest_depends_on_the_content_but_not_on_the_format(tmp_path):
    def digest(queries: dict[str, str], qrels: str) -> str:
        return datasets.load_queries(stored(tmp_path, queries, qrels)).digest

    first = digest({"1": "a", "2": "b"}, "1 x 2\n2 y 1\n")
    assert first == digest({"1": "a", "2": "b", "3": "unjudged"}, "2 0 y 1.0\n1 0 x 2\n")
    assert first != digest({"1": "a", "2": "c"}, "1 x 2\n2 y 1\n")
    assert first != digest({"1": "a", "2": "b"}, "1 x 1\n2 y 1\n")

    (tmp_path / "queries.tsv.gz").write_bytes(gzip.compress(b"1\ta\n2\tb\n"))
    (tmp_path / "qrels.tsv").write_text("1\tx\t2\n2\ty\t1\n")
    paths = (tmp_path, tmp_path / "queries.tsv.gz", tmp_path / "qrels.tsv")
    assert first == datasets.load_queries(DatasetFiles("b", *paths)).digest


def test_queries_without_qrels_are_named(tmp_path):
    files = stored(tmp_path, {"q-1": "a"}, "7 x 1\n")
    with pytest.raises(DataError, match="queries without qrels") as caught:
        datasets.load_queries(files)
    message = str(caught.value)
    assert message.startswith(f"{files.qrels}: ")
    assert f"('7', …) is in {files.queries} ('q-1', …): name the qrels of these" in message


def test_both_lines_of_a_duplicate_query_id_are_named(tmp_path):
    files = stored(tmp_path, {"1": "a", "2": "b"}, "1 x 1\n")
    with files.queries.open("a") as stream:
        stream.write('\n{"_id": 1, "text": "again"}')
    expected = f"{files.queries}:3: query '1' is also at {files.queries}:1: keep one of them"
    with pytest.raises(DataError, match=re.escape(expected)):
        datasets.load_queries(files)


def test_an_unknown_role_is_named(tmp_path):
    with pytest.raises(UserError, match=r"qrel= is none of corpus=, queries=, qrels="):
        datasets.parse(f"dev:{tmp_path},qrel=/x")
