"""The demo's task: find a Python function from the first sentence of its docstring.

A query is the first sentence of a function's docstring. Its passage is the rest of that
docstring, with the module's name as title. The sources are the standard library and the
installed packages among PACKAGES; they are parsed with `ast`, not imported. Functions are
ordered by the hashes of their names, so that the order does not depend on the machine.
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
# transformers' `models` holds thousands of docstrings that are copies of each other.
SKIPPED = {
    *("dist-packages", "site-packages", "test", "tests"),
    *("idlelib", "lib2to3", "models", "turtledemo"),
}
# A sentence starts with a capital letter, and the text after it does not continue in lower
# case: `e.g. this` ends no sentence.
SENTENCE = re.compile(r"[A-Z][^:]*?[.?!](?=\s+[^\sa-z]|$)")
QUERY_WORDS = range(4, 41)
MIN_PASSAGE_WORDS = 10


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and its passage, from one function's docstring.

    Attributes:
      id: The function's dotted name.
      title: The name of its module.
      query: The docstring's first sentence.
      passage: The rest of the docstring.
    """

    id: str
    title: str
    query: str
    passage: str


@dataclass(frozen=True)
class Settings:
    """The settings that the built files depend on.

    Attributes:
      queries: Number of queries held out for validation.
      passages: Size of the validation corpus, including the passages of those queries.
      vocabulary: Size of the tokenizer's vocabulary, in word pieces.
      packages: Names of the packages whose docstrings are read if they are installed.
      python: Version of this Python, whose standard library is read.
    """

    queries: int = 500
    passages: int = 3500
    vocabulary: int = 8192
    packages: tuple[str, ...] = PACKAGES
    python: str = sys.version


def source_roots(packages: Iterable[str] = PACKAGES) -> dict[str, Path]:
    """Returns the folder of each installed package by name; "" is the standard library."""
    roots = {"": Path(sysconfig.get_path("stdlib"))}
    for package in packages:
        spec = find_spec(package)
        if spec and spec.submodule_search_locations:
            roots[package] = Path(next(iter(spec.submodule_search_locations)))
    return roots


def read_pairs(roots: Mapping[str, Path]) -> list[Pair]:
    """Returns the pairs of these source trees, sorted by id, without repeated texts.

    Args:
      roots: Package name -> its folder, as `source_roots` returns them.
    """
    pairs: list[Pair] = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for package, root in sorted(roots.items()):
            files = pool.map(partial(_read_file, package, root), _sources(root), chunksize=32)
            pairs.extend(pair for file_pairs in files for pair in file_pairs)
    return _distinct(sorted(pairs, key=lambda pair: pair.id))


def split(pairs: Sequence[Pair], queries: int, passages: int) -> tuple[list[Pair], list[Pair]]:
    """Returns the corpus and the training pairs, each in the order of the ids' hashes.

    The first `queries` pairs of the corpus are held out. Its other pairs are also among the
    training pairs.

    Args:
      pairs: The pairs, in any order.
      queries: Number of pairs to hold out.
      passages: Size of the corpus, including the held-out pairs.

    Raises:
      ValueError: No pair is left to train on.
    """
    if len(pairs) <= queries:
        raise ValueError(
            f"{len(pairs)} pairs: none is left for training after {queries} queries"
        )
    order = sorted(pairs, key=lambda pair: hashlib.sha256(pair.id.encode()).digest())
    return order[:passages], order[queries:]


def write(
    data: Path, corpus: Sequence[Pair], queries: Sequence[Pair], train: Sequence[Pair]
) -> None:
    """Writes a BEIR folder, with a `train.jsonl` for the trainer.

    Args:
      data: The folder to write.
      corpus: The validation corpus.
      queries: The pairs of the corpus whose queries are held out.
      train: The training pairs.
    """
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
    """Trains a WordPiece tokenizer that `AutoTokenizer.from_pretrained(folder)` reads.

    Args:
      folder: The folder to write.
      texts: The training texts.
      vocabulary: Size of the vocabulary, in word pieces.
    """
    # Imported here, because the processes that read the sources do not need them.
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
    """Builds the task and its tokenizer, unless they were built with the same settings.

    Args:
      data: Folder of the task, a BEIR folder.
      model: Folder of the tokenizer.
      settings: The settings to build with.
      roots: Package name -> its folder, as `source_roots` returns them.
    """
    marker = data / "settings.json"
    text = json.dumps(asdict(settings), indent=1)
    if marker.is_file() and marker.read_text("utf-8") == text:
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
    marker.write_text(text, "utf-8")  # last, because it marks the other files as complete
    print(
        f"{len(train)} pairs to train on; {settings.queries} queries, {len(corpus)} passages."
    )


def _sources(root: Path) -> list[Path]:
    paths = sorted(root.rglob("*.py"))
    return [path for path in paths if not SKIPPED & set(path.relative_to(root).parts)]


def _read_file(package: str, root: Path, path: Path) -> list[Pair]:
    """Returns the pairs of one file, or none if this Python cannot parse it."""
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
    """Yields (qualified name, docstring) of each function and method, in the file's order."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, ast.get_docstring(child) or ""
        elif isinstance(child, ast.ClassDef):
            yield from _docstrings(child, f"{prefix}{child.name}.")


def pair_of(id_: str, module: str, docstring: str) -> Pair | None:
    """Returns a docstring's query and passage, or None if they make no useful pair.

    A pair is useful if the docstring starts with a sentence, the query and the passage are
    long enough, and the passage does not contain the query.

    Args:
      id_: The function's dotted name.
      module: The name of its module.
      docstring: The function's docstring.
    """
    first, _, others = docstring.partition("\n\n")
    first = " ".join(first.split())
    sentence = SENTENCE.match(first)
    if not sentence:
        return None
    query = sentence[0]
    passage = " ".join([*first[sentence.end() :].split(), *others.split()])
    long_enough = len(passage.split()) >= MIN_PASSAGE_WORDS
    if len(query.split()) not in QUERY_WORDS or not long_enough:
        return None
    if query.rstrip(".?!").lower() in passage.lower():
        return None
    return Pair(id_, module, query, passage)


def _distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """Drops each pair whose id, query or passage an earlier pair has."""
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
