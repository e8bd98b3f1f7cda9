import gzip
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxval.corpus import readers
from jaxval.errors import DataError, UserError
from jaxval.records import Text

# Text that JSON and UTF-8 can express. In a TSV file there are no tabs and line ends.
PLAIN = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CELL = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n\ufeff"), max_size=20
)
IDS = st.text(st.sampled_from("abz019-_/#é"), min_size=1, max_size=6)
OTHER = "it has a field other than {title} and {text}"
TOKENS = st.lists(st.integers(0, 30_000), max_size=5).map(tuple)
RECORDS = st.lists(st.builds(Text, IDS, PLAIN | TOKENS, PLAIN), min_size=1, max_size=8)
ROWS = st.lists(st.builds(Text, IDS, CELL, CELL), min_size=1, max_size=8)


def write(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


def jsonl(texts: list[Text]) -> str:
    records = ({"_id": text.id, "title": text.title, "text": text.text} for text in texts)
    return "".join(json.dumps(record) + "\n" for record in records)


def read(path: Path) -> list[Text]:
    return list(readers.read_texts(path))


def fault(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Formats


@given(texts=RECORDS, name=st.sampled_from(["c.jsonl", "c.json", "c.jsonl.gz", "c.json.gz"]))
@settings(deadline=None)
def test_jsonl_survives_a_round_trip(texts, name):
    with tempfile.TemporaryDirectory() as folder:
        assert read(write(Path(folder, name), jsonl(texts))) == texts


@given(
    rows=ROWS, name=st.sampled_from(["c.tsv", "c.txt", "c.tsv.gz"]), end=st.sampled_from("\n\r")
)
@settings(deadline=None)
def test_tsv_survives_a_round_trip(rows, name, end):
    end = "\r\n" if end == "\r" else end
    content = "".join(f"{row.id}\t{row.title}\t{row.text}{end}" for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        assert read(write(Path(folder, name), content)) == rows


@given(texts=RECORDS, cuts=st.lists(st.integers(0, 8), max_size=3).map(sorted))
@settings(deadline=None)
def test_shards_are_read_like_a_single_file(texts, cuts):
    bounds = [0, *cuts, len(texts)]
    with tempfile.TemporaryDirectory() as folder:
        for i, (start, stop) in enumerate(pairwise(bounds)):
            name = f"part-{i}.jsonl" + (".gz" if i % 2 else "")
            write(Path(folder, name), jsonl(texts[start:stop]))
        assert read(Path(folder)) == texts


def test_hidden_files_and_unknown_endings_are_not_shards(tmp_path):
    write(tmp_path / "b.jsonl", '{"id": "2", "text": "b"}')
    write(tmp_path / "a.tsv", "1\ta")
    write(tmp_path / ".a.jsonl", "broken")
    write(tmp_path / "README.md", "words")
    (tmp_path / "more.jsonl").mkdir()
    assert [text.id for text in read(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize("key", readers.ID_KEYS)
def test_every_id_key_is_known(tmp_path, key):
    assert read(write(tmp_path / "c.jsonl", json.dumps({key: 7, "text": "t"}))) == [
        Text("7", "t")
    ]


@pytest.mark.parametrize("key", readers.TEXT_KEYS)
def test_every_text_key_is_known(tmp_path, key):
    path = write(tmp_path / "c.jsonl", json.dumps({"id": "7", key: "t", "title": None}))
    assert read(path) == [Text("7", "t")]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("1\tbody", Text("1", "body")),
        ("1\ttitle\tbody", Text("1", "body", "title")),
        ("D1\thttp://x\ttitle\tbody", Text("D1", "body", "title")),
        ("1\t\t", Text("1", "", "")),
        (" 1 \t body", Text("1", " body")),
        ("id\ttext\ttitle\n1\tbody\ttitle", Text("1", "body", "title")),  # DPR's passages
    ],
)
def test_tsv_columns(tmp_path, line, text):
    assert read(write(tmp_path / "c.tsv", line)) == [text]


def test_bom_crlf_and_blank_lines_are_ignored(tmp_path):
    content = "\ufeff\r\n" + '{"_id": "1", "text": ""}\r\n \n\n{"_id": "2", "text": "\u2028"}'
    assert read(write(tmp_path / "c.jsonl", content)) == [Text("1", ""), Text("2", "\u2028")]


def test_reading_is_lazy(tmp_path):
    texts = readers.read_texts(write(tmp_path / "c.tsv", "1\ta\nbroken\n"))
    assert next(texts) == Text("1", "a")


# Errors


@pytest.mark.parametrize(
    ("line", "what", "remedy"),
    [
        (
            '{"_id": "1", "te',
            "broken JSON (Unterminated string",
            "write one object per line",
        ),
        ("[" * 100_000, "broken JSON", "write one object per line"),
        ('["1", "text"]', '["1", "text"] is not a JSON object', "write one object per line"),
        (
            '{"key": 1, "text": "t"}',
            'no id among its keys ["key", "text"]',
            "one of _id, text_id",
        ),
        ("{}", "no id among its keys []", "use one of _id"),
        (
            '{"id": "1", "body": "t"}',
            'no text among its keys ["id", "body"]',
            "one of text, query",
        ),
        ('{"id": true, "text": "t"}', "'id' is true", "write a string"),
        ('{"id": " ", "text": "t"}', "'id' is empty", "give each text an id"),
        ('{"id": 1, "text": null}', "'text' is null", "write a string or a list of token ids"),
        ('{"id": 1, "text": [1, "a"]}', "'text' is [1, \"a\"]", "a list of token ids"),
        ('{"id": 1, "text": [true]}', "'text' is [true]", "a list of token ids"),
        ('{"id": 1, "text": [-1]}', "'text' is [-1]", "a list of token ids"),
        ('{"id": 1, "text": "t", "title": ["a"]}', "'title' is [\"a\"]", "write a string"),
        (
            '{"id": 1, "text": "a\\ud83d"}',
            "'text' contains half a surrogate pair",
            "replace it",
        ),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, what, remedy):
    path = write(tmp_path / "c.jsonl", '{"_id": "0", "text": "good"}\n\n' + line)
    message = fault(path)
    assert message.startswith(f"{path}:3: {what}")
    assert remedy in message


@pytest.mark.parametrize(
    ("content", "number", "what"),
    [
        ("one column", 1, "1 tab-separated columns where id<TAB>text is expected"),
        ("1\ta\n2\tb\tc", 2, "3 tab-separated columns where id<TAB>text is expected"),
        ("1\ta\tb\tc\td", 1, "5 tab-separated columns"),
        ("1\ta\n\tb", 2, "'id' is empty"),
    ],
)
def test_a_bad_tsv_line_is_named(tmp_path, content, number, what):
    path = write(tmp_path / "c.tsv", content)
    assert fault(path).startswith(f"{path}:{number}: {what}")


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = write(tmp_path / "c.tsv", b"1\tfine\n2\tcaf\xe9\n")
    assert fault(path) == f"{path}:2: not UTF-8 (byte 0xe9 at 5): save the file as UTF-8"


def test_truncated_gzip_is_named(tmp_path):
    path = tmp_path / "c.jsonl.gz"
    lines = "".join(json.dumps({"id": i, "text": f"{i * i}"}) + "\n" for i in range(5000))
    whole = gzip.compress(lines.encode())
    path.write_bytes(whole[: len(whole) // 2])
    message = fault(path)
    assert "cut short or not gzip (Compressed file ended" in message
    assert "copy or compress it again" in message
    assert int(message.removeprefix(f"{path}:").partition(":")[0]) > 1


@pytest.mark.parametrize(
    "raw",
    [b"1\tplain\n", gzip.compress(b"1\ta")[:-8] + b"\0" * 8],
    ids=["plain", "wrong checksum"],
)
def test_a_file_that_is_not_gzip_is_named(tmp_path, raw):
    path = tmp_path / "c.tsv.gz"
    path.write_bytes(raw)
    message = fault(path)
    assert message.startswith(f"{path}:")
    assert "remove .gz from its name" in message


def test_damaged_gzip_is_named(tmp_path):
    path = tmp_path / "c.tsv.gz"
    raw = bytearray(gzip.compress(b"1\ta\n" * 50))
    raw[10] = 0xFF
    path.write_bytes(bytes(raw))
    assert fault(path).startswith(f"{path}:1: cut short or not gzip")


def test_unknown_ending_is_named(tmp_path):
    path = write(tmp_path / "c.parquet", "x")
    message = f"{path}: unknown ending: use one of .jsonl, .json, .tsv, .txt, plain or .gz"
    assert fault(path) == message


def test_missing_file_is_named(tmp_path):
    path = tmp_path / "c.jsonl"
    assert fault(path).startswith(f"{path}: No such file or directory: check the path")
    with pytest.raises(DataError, match="No such file or directory: check the path"):
        readers.digest(path)


def test_a_folder_without_files_to_read_is_named(tmp_path):
    write(tmp_path / "README.md", "words")
    assert fault(tmp_path).startswith(
        f"{tmp_path}: there is no file to read in it: add .jsonl,"
    )


@pytest.mark.parametrize("name", ["c.jsonl", "c.tsv", "c.tsv.gz"])
def test_empty_corpus_is_named(tmp_path, name):
    path = write(tmp_path / name, "\n \n")
    assert fault(path) == f"{path}: there is no text in it: check that the file is complete"


# Lines of an id, digests, rendering


def test_find_lines_names_each_line_of_an_id(tmp_path):
    first = write(tmp_path / "a.tsv", "1\ta\n\n2\tb\n")
    second = write(tmp_path / "b.tsv", "3\tc\n2\td\n")
    assert readers.find_lines(tmp_path, "2") == [f"{first}:3", f"{second}:2"]
    assert readers.find_lines(first, "3") == []


def test_digest_depends_on_the_bytes_and_the_shards(tmp_path):
    def of(folder: str, *shards: str) -> str:
        for i, content in enumerate(shards):
            write(tmp_path / folder / f"{i}.tsv", content)
        return readers.digest(tmp_path / folder)

    assert of("a", "1\ta\n", "2\tb\n") == of("b", "1\ta\n", "2\tb\n")
    digests = [
        of("c", "1\ta\n2\tb\n"),
        of("d", "1\ta\n", "2\tc\n"),
        of("e", "2\tb\n", "1\ta\n"),
    ]
    assert len({of("a"), *digests}) == 4
    assert readers.digest(tmp_path / "c" / "0.tsv") == digests[0]
    assert len(digests[0]) == 64


@pytest.mark.parametrize(
    ("text", "template", "prefix", "rendered"),
    [
        (Text("1", "body", "title"), "{title} {text}", "", "title body"),
        (Text("1", "body"), "{title} {text}", "passage: ", "passage: body"),
        (Text("1", ""), "{title} {text}", "", ""),
        (Text("1", "{title}", "t"), "{title}: {text}", "", "t: {title}"),
        (Text("1", (3, 5), "t"), "{title} {text}", "", (3, 5)),
    ],
)
def test_render(text, template, prefix, rendered):
    assert readers.render(text, template, prefix) == rendered


def test_a_prefix_before_token_ids_is_refused():
    with pytest.raises(DataError, match=r"'7' is token ids.*'query: '.*tokenize the file with"):
        readers.render(Text("7", (1, 2)), "{text}", "query: ")


@pytest.mark.parametrize("template", ["{text}", "{title} {text}", "{{{title}}}: {text}"])
def test_good_templates_pass(template):
    readers.check_template(template)


@pytest.mark.parametrize(
    ("template", "what"),
    [
        *((f"{other} {{text}}", OTHER) for other in ("{titel}", "{text.id}", "{}")),
        *((f"{other} {{text}}", OTHER) for other in ("{text:d}", "{text!r}")),
        ("{title}", "it has no field {text}"),
        ("{{text}}", "it has no field {text}"),
        ("{text", "expected '}' before end of string"),
    ],
)
def test_bad_templates_are_named(template, what):
    with pytest.raises(UserError) as caught:
        readers.check_template(template)
    assert str(caught.value).startswith(
        f"`passage_template={template!r}`: {what}: use {{text}}"
    )


def test_gzip_without_the_ending_gz_is_named(tmp_path):
    (tmp_path / "corpus.jsonl").write_bytes(gzip.compress(b'{"_id": "1", "text": "a"}'))
    with pytest.raises(DataError, match=r"corpus.jsonl:1: .*it is gzip, name it .gz"):
        list(readers.read_texts(tmp_path / "corpus.jsonl"))
