"""Fixtures, and the machine as every test sees it: four CPU devices, strict ranks."""

import os
import signal

# A shell's background job ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before JAX is imported, by whatever test comes first.
_FOUR = "--xla_force_host_platform_device_count=4"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FOUR}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests start the apps more than a hundred times: 0.4 s less each with bytecode files.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import hypothesis
import jax
import pytest

from jaxval.corpus import token_store
from jaxval.corpus.token_store import Recipe, TokenStore
from jaxval.corpus.tokenizer import Tokenizer, wrap
from jaxval.records import Text

jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "ours",
    deadline=None,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("ours")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = tuple("abcdefghijklmnopqrstuvwxyz")
"""The tiny tokenizer's vocabulary: the ids of a, b, … z are 4, 5, … 29."""


@pytest.fixture(scope="session")
def tiny_backend():
    """Word level, letters only: `a b` is [CLS] a b [SEP], 2 4 5 3. Other words are 1."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_backend) -> Tokenizer:
    return wrap(tiny_backend)


@pytest.fixture(scope="session")
def tokenizer_folder(tiny_backend, tmp_path_factory) -> Path:
    """The tiny tokenizer as AutoTokenizer loads it."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tiny_backend, cls_token="[CLS]", sep_token="[SEP]", **names
    ).save_pretrained(folder)
    return folder


class SilentBar:
    """A Bar that only counts."""

    def __init__(self):
        self.done = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, n):
        self.done += n


@pytest.fixture
def silent() -> Callable[..., SilentBar]:
    """A Progress that shows nothing."""
    return lambda label="", total=None: SilentBar()


@pytest.fixture
def store(tmp_path, tiny_tokenizer) -> Callable[..., TokenStore]:
    """Makes a token store of texts: strings, token ids or Texts."""
    numbers = itertools.count()

    def make(
        texts: Iterable[str | tuple[int, ...] | Text], *, max_len: int = 64, prefix: str = ""
    ) -> TokenStore:
        whole = [
            text if isinstance(text, Text) else Text(f"d{row}", text)
            for row, text in enumerate(texts)
        ]
        return token_store.open_or_build(
            tmp_path / "tokens",
            whole,
            f"{tmp_path}-{next(numbers)}",
            tiny_tokenizer,
            Recipe("{title} {text}", prefix, max_len),
            find_lines=lambda id_: [
                f"{row}" for row, text in enumerate(whole) if text.id == id_
            ],
            bar=SilentBar,
        )

    return make


@pytest.fixture
def beir(tmp_path) -> Callable[..., Path]:
    """Writes a tiny BEIR folder: ids -> texts, ids -> texts, query -> document -> grade."""

    def write(
        name: str = "tiny",
        corpus: dict[str, str] | None = None,
        queries: dict[str, str] | None = None,
        qrels: dict[str, dict[str, int]] | None = None,
    ) -> Path:
        folder = tmp_path / name
        (folder / "qrels").mkdir(parents=True)
        corpus = corpus or {"d1": "a b c", "d2": "b c d", "d3": "x y z"}
        queries = queries or {"q1": "a b", "q2": "z"}
        qrels = qrels or {"q1": {"d1": 1}, "q2": {"d3": 1}}
        for stem, texts in {"corpus": corpus, "queries": queries}.items():
            lines = [json.dumps({"_id": id_, "text": text}) for id_, text in texts.items()]
            (folder / f"{stem}.jsonl").write_text("\n".join(lines) + "\n")
        rows = [f"{q}\t{d}\t{g}" for q, grades in qrels.items() for d, g in grades.items()]
        head = "query-id\tcorpus-id\tscore"
        (folder / "qrels" / "test.tsv").write_text("\n".join([head, *rows]) + "\n")
        return folder

    return write


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another file system than `tmp_path`. Hard links between them are refused."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
