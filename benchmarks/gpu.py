"""Measures BERT-base in bfloat16 on a GPU: encoding, searching, and the time for MS MARCO.

    python -m benchmarks.gpu [--peer_python=PATH] [--small]

A BERT-base with random weights encodes a million texts with each kind of attention that the
device supports. The texts are random words, with the lengths of MS MARCO's passages.
sentence-transformers encodes the first 100,000 of them in bfloat16, in turn with jaxval. Then
7,000 queries are searched among random vectors. Tokens are counted without padding.

- `idle`: share of the encoding time in which the GPU does not compute. The computing time is
  measured with batches that are on the GPU already and whose vectors are not copied back.
- `of peak`: FLOP/s of the matrix products, divided by the data sheet's FLOP/s for dense
  bfloat16.

Without a GPU, or with --small, the script uses a small model and few texts. That only tests the
script: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.encode import peer, products
from benchmarks.inputs import Silent
from benchmarks.lengths import msmarco

MSMARCO = 8_841_823
PEAKS = {"H100 80GB": 989e12, "H100 PCIe": 756e12, "H200": 989e12, "A100": 312e12}
"""Part of a card's name -> FLOP/s in dense bfloat16, from its data sheet."""


@dataclass(frozen=True)
class Size:
    """The size of the benchmark.

    Attributes:
      config: Entries of the model's config.json.
      passages: Number of passages to encode.
      peer_passages: Number of passages that sentence-transformers encodes as well.
      queries: Number of queries to search.
      depths: Depths of the search.
      index: (number of vectors, their width) of each search.
    """

    config: dict[str, int]
    passages: int
    peer_passages: int
    queries: int
    depths: tuple[int, ...]
    index: tuple[tuple[int, int], ...]


BASE = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
TINY = BASE | {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "intermediate_size": 128}
LARGE = Size(BASE, 1_000_000, 100_000, 7_000, (100, 1000), ((1_000_000, 768), (2_000_000, 768)))
SMALL = Size(TINY, 2_000, 200, 50, (10, 100), ((5_000, 64),))


def write_model(target: Path, config: dict[str, int]) -> None:
    """Writes a sentence-transformers folder with random weights.

    Its tokenizer makes one token of each word `w4`, `w5` and so on.
    """
    import numpy as np
    import tokenizers
    from safetensors.numpy import save_file

    target.mkdir(parents=True)
    words = {f"w{number}": number for number in range(4, config["vocab_size"])}
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(special | words, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(target / "tokenizer.json"))
    modules = ["Transformer", "Pooling", "Normalize"]
    _json(
        target / "config.json", {"model_type": "bert", "architectures": ["BertModel"], **config}
    )
    _json(
        target / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
        | {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    )
    _json(target / "sentence_bert_config.json", {"max_seq_length": 256})
    _json(
        target / "modules.json",
        [
            {
                "idx": index,
                "name": str(index),
                "path": f"{index}_{kind}" if index else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, kind in enumerate(modules)
        ],
    )
    (target / "2_Normalize").mkdir()
    pooling = {
        "word_embedding_dimension": config["hidden_size"],
        "pooling_mode_mean_tokens": True,
    }
    _json(target / "1_Pooling/config.json", pooling)
    rng = np.random.default_rng(0)
    weights = {name: _weight(name, shape, rng) for name, shape in shapes(config).items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def shapes(config: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of the weights of a PyTorch BertModel without pooler."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    tables = {"word": "vocab_size", "position": "max_position_embeddings"}
    by_name: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (config[size], hidden)
        for name, size in tables.items()
    }
    by_name["embeddings.token_type_embeddings.weight"] = (2, hidden)
    norms = ["embeddings.LayerNorm"]
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        square = [f"attention.self.{part}" for part in ("query", "key", "value")]
        for name in [*square, "attention.output.dense"]:
            by_name |= _dense(f"{layer}.{name}", hidden, hidden)
        by_name |= _dense(f"{layer}.intermediate.dense", hidden, inner)
        by_name |= _dense(f"{layer}.output.dense", inner, hidden)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name in norms:
        by_name |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
    return by_name


def _dense(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (columns, rows), f"{name}.bias": (columns,)}


def _weight(name: str, shape: tuple[int, ...], rng: Any) -> Any:
    import numpy as np

    if name.endswith("LayerNorm.weight"):
        return np.ones(shape, np.float32)
    return (0.02 * rng.standard_normal(shape)).astype(np.float32)


def write_texts(count: int, vocabulary: int) -> list[str]:
    """Returns texts of random words, with the lengths of MS MARCO's passages."""
    import numpy as np

    rng = np.random.default_rng(1)
    lengths = msmarco(count, rng)
    words = rng.integers(4, vocabulary, int(lengths.sum())).tolist()
    ends = np.cumsum(lengths).tolist()
    starts = [0, *ends[:-1]]
    return [
        " ".join(f"w{word}" for word in words[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]


class Ours:
    """jaxval's encoder in bfloat16, with one kind of attention.

    Attributes:
      config: Configuration of the model.
      batch_tokens: Maximum number of tokens per batch on each device.
      params: The parameters, on the devices.
      tower: The compiled encoder.
    """

    def __init__(self, model: Path, attend: Any):
        import jax

        from jaxval.encoders import folder
        from jaxval.evaluation.encode import Tower, default_batch_tokens, place

        read = folder.read(str(model))
        encoder = folder.build(read, dtype="bfloat16", attend=attend)
        shapes = encoder.abstract_params()
        params = folder.load_weights(read)[0]
        params = jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), params, shapes)
        self.config = read.config
        self.batch_tokens = default_batch_tokens(jax.devices()[0])
        self.params = place(params, jax.devices())
        self.tower = Tower(encoder.encode_passages, jax.devices(), self.batch_tokens)

    def encode(self, store: Any) -> tuple[float, Any]:
        """Encodes a store. Returns the seconds, and the vectors of the last chunk."""
        start = time.perf_counter()
        for chunk in self.tower.chunks(self.params, store, Silent()):
            last = chunk
        return time.perf_counter() - start, last

    def busy(self, store: Any) -> float:
        """Returns the seconds that the devices compute for a store, estimated by bucket."""
        return sum(self._bucket_seconds(store, bucket) for bucket in store.buckets)

    def _bucket_seconds(self, store: Any, bucket: Any, repeats: int = 8) -> float:
        import jax
        import numpy as np

        rows = max(1, self.batch_tokens // bucket.width // 8 * 8)
        ids = np.resize(store.matrix(bucket)[:rows], (len(jax.devices()), rows, bucket.width))
        lengths = np.full(ids.shape[:2], bucket.width, np.uint16)
        batch = [jax.device_put(array) for array in (ids, lengths)]
        run = self.tower.run
        jax.block_until_ready(run(self.params, *batch))
        start = time.perf_counter()
        jax.block_until_ready([run(self.params, *batch) for _ in range(repeats)])
        per_batch = (time.perf_counter() - start) / repeats
        return per_batch * bucket.count / (rows * len(jax.devices()))


def attentions() -> dict[str, Any]:
    """Returns the kinds of attention that the first device supports, by name."""
    import jax

    from jaxval.encoders.attention import cudnn, fastest, plain

    return {"xla": plain} | ({"cudnn": cudnn} if fastest(jax.devices()[0]) is cudnn else {})


def encoding(model: Path, store: Any, repeats: int) -> list[dict[str, Any]]:
    """Measures encoding. Returns one record for each kind of attention."""
    rows = []
    for name, attend in attentions().items():
        ours = Ours(model, attend)
        compiling, _ = ours.encode(store)
        seconds = report.median([ours.encode(store)[0] for _ in range(repeats)])
        flops = products(ours.config, store) / seconds
        rows.append(
            {
                "attention": name,
                "seconds": seconds,
                "first_seconds": compiling,
                "tokens_a_second": store.tokens / seconds,
                "padding": 1 - store.tokens / store.padded,
                "tflops": flops / 1e12,
                "of_peak": flops / peak() if peak() else None,
                "idle": max(0.0, 1 - ours.busy(store) / seconds),
                "msmarco_seconds": seconds * MSMARCO / store.count,
            }
        )
    return rows


def peak() -> float | None:
    """Returns the peak FLOP/s of the first device, or None if it is not in PEAKS."""
    import jax

    kind = jax.devices()[0].device_kind
    return next((value for name, value in PEAKS.items() if name in kind), None)


def beside_peer(
    python: str, model: Path, texts: Sequence[str], root: Path, repeats: int
) -> dict[str, Any]:
    """Measures jaxval and sentence-transformers on the same texts in bfloat16, in turn."""
    import jax

    ours = Ours(model, list(attentions().values())[-1])
    stored = store(root, texts, model)
    ours.encode(stored)
    device = "cuda" if jax.devices()[0].platform == "gpu" else "cpu"
    own_seconds, peer_seconds = [], []
    with peer(python, model, texts, device, root) as other:
        other.encode("bfloat16")
        for _ in range(repeats):
            own_seconds.append(ours.encode(stored)[0])
            answer = other.encode("bfloat16")
            peer_seconds.append(answer["seconds"] - answer["tokenizing"])
    rates = [stored.tokens / report.median(seconds) for seconds in (own_seconds, peer_seconds)]
    return {
        "passages": len(texts),
        "seconds": {"jaxval": own_seconds, "sentence-transformers": peer_seconds},
        "tokens_a_second": dict(zip(("jaxval", "sentence-transformers"), rates, strict=True)),
        "peer_batch": answer["batch"],
        "ratio": rates[0] / rates[1],
    }


def store(root: Path, texts: Sequence[str], model: Path) -> Any:
    """Builds a token store of the texts."""
    from jaxval.corpus import tokenizer
    from jaxval.corpus.token_store import Recipe, open_or_build
    from jaxval.records import Text

    return open_or_build(
        root / "tokens",
        (Text(str(row), text) for row, text in enumerate(texts)),
        f"{len(texts)}",
        tokenizer.load(str(model)),
        Recipe("{text}", "", 256),
        find_lines=lambda _: [],
        bar=Silent,
    )


def searching(size: Size) -> list[dict[str, Any]]:
    """Measures searching, in chunks as in a validation. Returns one record per setting."""
    import numpy as np

    from jaxval.evaluation.search import FaissSearcher

    rng = np.random.default_rng(0)
    rows = []
    for vectors, dim in size.index:
        chunk = rng.standard_normal((min(vectors, (1 << 27) // dim), dim), np.float32)
        queries = rng.standard_normal((size.queries, dim), np.float32)
        for depth, dtype in itertools.product(size.depths, ("float32", "float16")):
            seconds = _search_seconds(
                FaissSearcher(queries, depth, "dot", dtype=dtype), chunk, vectors
            )
            settings = {"queries": size.queries, "depth": depth, "dtype": dtype}
            scaled = {"seconds": seconds, "msmarco_seconds": seconds * MSMARCO / vectors}
            rows.append({"vectors": vectors, "dim": dim, **settings, **scaled})
    return rows


def _search_seconds(searcher: Any, chunk: Any, vectors: int) -> float:
    import numpy as np

    begin = time.perf_counter()
    for start in range(0, vectors, len(chunk)):
        part = chunk[: vectors - start]
        searcher.add(part, np.arange(start, start + len(part)))
    searcher.hits()
    return time.perf_counter() - begin


def show(result: dict[str, Any]) -> str:
    """Returns the tables of encoding, of the comparison, and of searching."""
    rows = [
        [
            row["attention"],
            f"{row['tokens_a_second']:,.0f}",
            f"{row['tflops']:.0f}",
            "-" if row["of_peak"] is None else f"{row['of_peak']:.2f}",
            f"{100 * row['idle']:.1f}%",
            f"{100 * row['padding']:.1f}%",
            f"{row['msmarco_seconds']:.0f}",
        ]
        for row in result["encoding"]
    ]
    headers = [
        "attention",
        "tokens/s",
        "TFLOP/s",
        "of peak",
        "idle",
        "padding",
        "MS MARCO, s",
    ]
    tables = [report.table(headers, rows)]
    if result["peer"]:
        rates = result["peer"]["tokens_a_second"].items()
        tables.append(
            report.table(["", "tokens/s"], [[name, f"{rate:,.0f}"] for name, rate in rates])
        )
    headers = ["vectors", "dim", "depth", "dtype", "seconds", "MS MARCO, s"]
    rows = [
        [
            f"{row['vectors']:,}",
            *(str(row[name]) for name in ("dim", "depth", "dtype")),
            f"{row['seconds']:.2f}",
            f"{row['msmarco_seconds']:.1f}",
        ]
        for row in result["searching"]
    ]
    return "\n\n".join([*tables, report.table(headers, rows)])


def measure(size: Size, peer_python: str | None, repeats: int) -> dict[str, Any]:
    """Measures encoding, the peer if an interpreter is given, and searching."""
    with tempfile.TemporaryDirectory() as name:
        root, model = Path(name), Path(name) / "model"
        write_model(model, size.config)
        texts = write_texts(size.passages, size.config["vocab_size"])
        first_texts = texts[: size.peer_passages]
        (root / "peer").mkdir()
        return {
            "passages": size.passages,
            "encoding": encoding(model, store(root, texts, model), repeats),
            "peer": beside_peer(peer_python, model, first_texts, root / "peer", repeats)
            if peer_python
            else None,
            "searching": searching(size),
        }


def main() -> int:
    """Runs the benchmark, and writes the result if it was measured on a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--peer_python",
        help="interpreter that has sentence-transformers; without it, only jaxval is measured",
    )
    parser.add_argument("--repeats", type=int, default=3, help="number of timed runs")
    parser.add_argument(
        "--small", action="store_true", help="use the small size on a GPU as well"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    device = jax.devices()[0]
    small = arguments.small or device.platform != "gpu"
    result = measure(SMALL if small else LARGE, arguments.peer_python, arguments.repeats)
    print(
        f"on {device.device_kind}"
        + (" with the small size; the figures only show that the script works" if small else "")
    )
    print(show(result))
    if not small:
        report.write("gpu", {"device": device.device_kind, **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
