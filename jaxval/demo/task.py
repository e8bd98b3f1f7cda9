"""The demo's task: find a Python function from the first sentence of its docstring.

A passage is the rest of that docstring, titled with its module. Sources are read with
`ast` and never imported: the standard library, and those PACKAGES that are installed.
The functions' order is that of their names' hashes, so it is the same everywhere.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

PACKAGES = (
    "flax",
    "huggingface_hub",
    "jax",
    "numpy",
    "optax",
    "orbax",
    "scipy",
    "transformers",
)
# `models` is transformers' zoo: thousands of docstrings that are copies of one another.
SKIPPED = {
    *("dist-packages", "site-packages", "test", "tests"),
    *("idlelib", "lib2to3", "models", "turtledemo"),
}
# It starts as prose does, and what follows it starts anew: `e.g. this` ends no sentence.
SENTENCE = re.compile(r"[A-Z][^:]*?[.?!](?=\s+[^\sa-z]|$)")
QUERY_WORDS = range(4, 41)
LEAST_PASSAGE_WORDS = 10


@dataclass(frozen=True, slots=True)
class Pair:
    """A function: its dotted name, its module, its docstring's first sentence and the rest."""

    id: str
    title: str
    query: str
    passage: str


@dataclass(frozen=True)
class Settings:
    """What the built files depend on.

    Attributes:
      queries: how many queries are held out for validation.
      passages: size of the validation corpus, the queries' own passages included.
      vocabulary: word pieces of the tokenizer.
    """

    queries: int = 500
    passages: int = 3500
    vocabulary: int = 8192
    packages: tuple[str, ...] = PACKAGES
    python: str = sys.version


def source_roots(packages: Iterable[str] = PACKAGES) -> dict[str, Path]:
    """Package name -> its folder, for those that are here; "" is the standard library."""
    roots = {"": Path(sysconfig.get_path("stdlib"))}
    for package in packages:
        spec = find_spec(package)
        if spec and spec.submodule_search_locations:
            roots[package] = Path(next(iter(spec.submodule_search_locations)))
    return roots


def read_pairs(roots: Mapping[str, Path]) -> list[Pair]:
    """All functions of these source trees, each query and each passage once, by id."""
    pairs: list[Pair] = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for package, root in sorted(roots.items()):
            found = pool.map(partial(_of_file, package, root), _sources(root), chunksize=32)
            pairs.extend(pair for of_file in found for pair in of_file)
    return _distinct(sorted(pairs, key=lambda pair: pair.id))


def split(pairs: Sequence[Pair], queries: int, passages: int) -> tuple[list[Pair], list[Pair]]:
    """The pairs in the order of their hashes, as (corpus, training pairs).

    The corpus's first `queries` pairs are held out; its others are trained on too.
    """
    if len(pairs) <= queries:
        raise ValueError(f"{len(pairs)} pairs leave none to train on beside {queries} queries")
    order = sorted(pairs, key=lambda pair: hashlib.sha256(pair.id.encode()).digest())
    return order[:passages], order[queries:]


def write(
    data: Path, corpus: Sequence[Pair], queries: Sequence[Pair], train: Sequence[Pair]
) -> None:
    """Writes a BEIR folder, and `train.jsonl` for the trainer beside it."""
    (data / "qrels").mkdir(parents=True, exist_ok=True)
    _write_jsonl(
        data / "corpus.jsonl",
        ({"_id": p.id, "title": p.title, "text": p.passage} for p in corpus),
    )
    _write_jsonl(data / "queries.jsonl", ({"_id": p.id, "text": p.query} for p in queries))
    qrels = "".join(f"{p.id}\t{p.id}\t1\n" for p in queries)
    (data / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}", "utf-8")
    _write_jsonl(data / "train.jsonl", (asdict(p) for p in train))


def write_tokenizer(folder: Path, texts: Iterable[str], vocabulary: int) -> None:
    """Trains a WordPiece tokenizer; `AutoTokenizer.from_pretrained(folder)` reads it."""
    # Imported here: a process that only reads sources has no need of them.
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocabulary, special_tokens=special, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    pad, unk, cls, sep = special
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unk, cls_token=cls, sep_token=sep
    ).save_pretrained(folder)


def build(data: Path, model: Path, settings: Settings, roots: Mapping[str, Path]) -> None:
    """Builds the task in `data` and its tokenizer in `model`, unless they are there."""
    done = data / "settings.json"
    wanted = json.dumps(asdict(settings), indent=1)
    if done.is_file() and done.read_text("utf-8") == wanted:
        print(f"The task is in {data} already.")
        return
    shutil.rmtree(data, ignore_errors=True)
    shutil.rmtree(model, ignore_errors=True)
    print(
        "Reading the docstrings of", ", ".join(name or "Python" for name in roots), flush=True
    )
    corpus, train = split(read_pairs(roots), settings.queries, settings.passages)
    write(data, corpus, corpus[: settings.queries], train)
    write_tokenizer(model, (f"{p.query} {p.passage}" for p in train), settings.vocabulary)
    done.write_text(wanted, "utf-8")  # last: it says that all the rest is whole
    print(
        f"{len(train)} pairs to train on; {settings.queries} queries, {len(corpus)} passages."
    )


def _sources(root: Path) -> list[Path]:
    paths = sorted(root.rglob("*.py"))
    return [path for path in paths if not SKIPPED & set(path.relative_to(root).parts)]


def _of_file(package: str, root: Path, path: Path) -> list[Pair]:
    """The pairs of one file; none if this Python cannot read it."""
    parts = (package, *path.relative_to(root).with_suffix("").parts)
    module = ".".join(part for part in parts if part and part != "__init__") or "__init__"
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    named = ((f"{module}.{name}", text) for name, text in _docstrings(tree))
    return [pair for id_, text in named if (pair := pair_of(id_, module, text))]


def _docstrings(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of each function and method, in the file's order."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, ast.get_docstring(child) or ""
        elif isinstance(child, ast.ClassDef):
            yield from _docstrings(child, f"{prefix}{child.name}.")


def pair_of(id_: str, module: str, docstring: str) -> Pair | None:
    """The docstring as a query and its passage, if it makes a fair question."""
    first, _, others = docstring.partition("\n\n")
    first = " ".join(first.split())
    sentence = SENTENCE.match(first)
    if not sentence:
        return None
    query = sentence[0]
    passage = " ".join([*first[sentence.end() :].split(), *others.split()])
    long_enough = len(passage.split()) >= LEAST_PASSAGE_WORDS
    if len(query.split()) not in QUERY_WORDS or not long_enough:
        return None
    if query.rstrip(".?!").lower() in passage.lower():
        return None  # the question would be its own answer
    return Pair(id_, module, query, passage)


def _distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """Drops a pair whose id, query or passage came before: no question has two answers."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for pair in pairs:
        keys = {
            ("id", pair.id),
            ("query", pair.query.lower()),
            ("passage", pair.passage.lower()),
        }
        if not keys & seen:
            kept.append(pair)
        seen |= keys
    return kept


def _write_jsonl(path: Path, lines: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
