"""Compares the encoding speed of jaxval and sentence-transformers on the same texts.

    python -m benchmarks.encode --data=DIR --peer_python=PATH [--repeats=3] [--small]

Both use the same weights on the CPU. They run in turn, in separate processes, after warm-up:
programs are compiled and batch sizes are chosen before the clock starts. The tokenization time
of sentence-transformers is measured and subtracted, because jaxval tokenizes once for all
checkpoints.

`of plain products` is the FLOP/s of jaxval's encoder, without padding, divided by the FLOP/s of
plain matrix products of the same shapes, timed in the same run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import inputs, report
from benchmarks.inputs import Silent
from jaxval.cli import devices

WORKER = Path(__file__).parent / "peers/sentence_transformers_worker.py"
COLLECTIONS = ("squad-dev", "awsdocs-passages")
TOLERANCE = 1e-4
DTYPES = ("float32", "bfloat16")


class Ours:
    """jaxval's encoder, and the tokens of some texts.

    Attributes:
      config: Configuration of the model.
      batch_tokens: Maximum number of tokens per batch.
      store: The texts' tokens.
      tokenizing: Seconds that tokenizing took.
    """

    def __init__(self, model: Path, texts: Sequence[str], tokens: Path):
        import jax

        from jaxval.corpus import tokenizer
        from jaxval.corpus.token_store import Recipe, open_or_build
        from jaxval.encoders import folder
        from jaxval.evaluation.encode import Tower, default_batch_tokens, place
        from jaxval.records import Text

        read = folder.read(str(model))
        encoder = folder.build(read)
        self.config = read.config
        self._params = place(folder.load_weights(read)[0], jax.devices())
        batch_tokens = default_batch_tokens(jax.devices()[0])
        self.batch_tokens = batch_tokens
        self._tower = Tower(encoder.encode_passages, jax.devices(), batch_tokens)
        recipe = Recipe("{text}", "", read.max_seq_length or 256)
        loaded = tokenizer.load(str(model))
        start = time.perf_counter()
        rows = [Text(str(row), text) for row, text in enumerate(texts)]
        self.store = open_or_build(
            tokens, rows, "texts", loaded, recipe, find_lines=lambda _: [], bar=Silent
        )
        self.tokenizing = time.perf_counter() - start

    def encode(self) -> Any:
        """Returns the vectors of all texts, [texts, dim]."""
        from jaxval.evaluation.encode import matrix

        return matrix(self._tower.chunks(self._params, self.store, Silent()), self.store.count)


def products(config: Any, store: Any) -> float:
    """Returns the floating-point operations of all matrix products, without padding."""
    hidden, inner = config.hidden_size, config.intermediate_size
    per_token = 2 * (4 * hidden**2 + 2 * hidden * inner)
    lengths = store.lengths.astype(float)
    attention = 4 * hidden * float((lengths**2).sum())
    return float(config.num_hidden_layers * (per_token * lengths.sum() + attention))


def rate_of_products(config: Any, tokens: int, seconds: float = 2.0) -> float:
    """Returns the FLOP/s of only a layer's matrix products, in float32.

    JAX and NumPy are timed, and the faster one counts.

    Args:
      config: Configuration of the model.
      tokens: Number of tokens in the batch.
      seconds: How long to time each of the two.
    """
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    hidden, inner = config.hidden_size, config.intermediate_size
    pairs = [
        (
            rng.standard_normal((tokens, rows), np.float32),
            rng.standard_normal((rows, columns), np.float32),
        )
        for rows, columns in [(hidden, hidden)] * 4 + [(hidden, inner), (inner, hidden)]
    ]
    operations = sum(
        2 * left.shape[0] * right.shape[0] * right.shape[1] for left, right in pairs
    )
    with jax.default_matmul_precision("float32"):
        compiled = jax.jit(lambda pairs: [left @ right for left, right in pairs])
        on_device = jax.device_put(pairs)
        by_jax = _best(lambda: jax.block_until_ready(compiled(on_device)), seconds)
    by_numpy = _best(lambda: [left @ right for left, right in pairs], seconds)
    return operations / min(by_jax, by_numpy)


def _best(work: Any, seconds: float) -> float:
    """Calls `work` repeatedly for some seconds, and returns its shortest time in seconds."""
    work()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass(frozen=True)
class Peer:
    """A running process of sentence-transformers.

    Attributes:
      process: The process.
    """

    process: subprocess.Popen[str]

    def encode(self, dtype: str) -> dict[str, float]:
        """Encodes all texts.

        Args:
          dtype: `float32` or `bfloat16`.

        Returns:
          `seconds`, `tokenizing` (the part of the seconds spent on tokenizing) and `batch`
          (the batch size).

        Raises:
          RuntimeError: The process ended.
        """
        print(dtype, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline() if self.process.stdout else ""
        if not answer:
            raise RuntimeError("sentence-transformers failed: see its message above")
        return json.loads(answer)  # type: ignore[no-any-return]


@contextmanager
def peer(
    python: str, model: Path, texts: Sequence[str], device: str, root: Path
) -> Iterator[Peer]:
    """Starts sentence-transformers in a process, and ends it with the context.

    Args:
      python: Interpreter that has sentence-transformers.
      model: The model's folder.
      texts: The texts to encode.
      device: `cpu` or `cuda`.
      root: Folder for the texts and for the vectors, `vectors.npy`.
    """
    (root / "texts.json").write_text(json.dumps(list(texts)))
    command = [python, WORKER, model, root / "texts.json", device, root / "vectors.npy"]
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Peer(process)
    finally:
        process.kill()
        process.wait()


def measure(collection: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures both tools on one collection, in turn."""
    import numpy as np

    texts = inputs.passages(arguments.data, collection, arguments.passages)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        ours = Ours(arguments.model, texts, root / "tokens")
        vectors = ours.encode()
        seconds: dict[str, list[float]] = {"jaxval": []}
        peaks, tokenizing, batches = [], [], {}
        with peer(arguments.peer_python, arguments.model, texts, "cpu", root) as other:
            for dtype in DTYPES:
                other.encode(dtype)
            for _ in range(arguments.repeats):
                peaks.append(rate_of_products(ours.config, ours.batch_tokens))
                seconds["jaxval"].append(_timed(ours.encode))
                for dtype in DTYPES:
                    answer = other.encode(dtype)
                    tokenizing.append(answer["tokenizing"])
                    batches[dtype] = answer["batch"]
                    net = answer["seconds"] - answer["tokenizing"]
                    seconds.setdefault(dtype, []).append(net)
        apart = float(np.abs(vectors - np.load(root / "vectors.npy")).max())
    return _result(collection, ours, seconds, peaks, apart) | {
        "peer_tokenizing_seconds": tokenizing,
        "peer_batches": batches,
    }


def _result(
    collection: str,
    ours: Ours,
    seconds: dict[str, list[float]],
    peaks: Sequence[float],
    apart: float,
) -> dict[str, Any]:
    medians = {side: report.median(values) for side, values in seconds.items()}
    operations = products(ours.config, ours.store)
    store = ours.store
    return {
        "collection": collection,
        "passages": store.count,
        "tokens_a_passage": round(store.tokens / store.count, 1),
        "padding": round(1 - store.tokens / store.padded, 4),
        "widths": [bucket.width for bucket in store.buckets],
        "seconds": seconds,
        "passages_a_second": {side: store.count / median for side, median in medians.items()},
        "tokens_a_second": {side: store.tokens / median for side, median in medians.items()},
        "ratio_float32": medians["float32"] / medians["jaxval"],
        "ratio_bfloat16": medians["bfloat16"] / medians["jaxval"],
        "gflops": operations / medians["jaxval"] / 1e9,
        "gflops_of_plain_products": report.median(peaks) / 1e9,
        "share_of_plain_products": operations / medians["jaxval"] / report.median(peaks),
        "tokenizing_seconds": ours.tokenizing,
        "vectors_apart": apart,
    }


def _timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def show(results: Sequence[dict[str, Any]]) -> str:
    """Returns a table with one row per collection."""
    headers = ["passages/s", "tokens/passage", "jaxval", "s-t float32", "s-t bfloat16"]
    headers += ["x float32", "x bfloat16", "GFLOP/s", "of plain products", "difference"]
    rows = []
    for result in results:
        rates = result["passages_a_second"]
        rows.append(
            [
                result["collection"],
                f"{result['tokens_a_passage']:.0f}",
                *(f"{rates[side]:.1f}" for side in ("jaxval", *DTYPES)),
                f"{result['ratio_float32']:.2f}",
                f"{result['ratio_bfloat16']:.2f}",
                f"{result['gflops']:.0f}",
                f"{result['share_of_plain_products']:.2f}",
                f"{result['vectors_apart']:.0e}",
            ]
        )
    return report.table(headers, rows)


def main() -> int:
    """Runs the benchmark. Returns 1 if the vectors of both tools differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    inputs.add_data(parser)
    parser.add_argument(
        "--peer_python",
        default=sys.executable,
        help="interpreter that has sentence-transformers (default: this one)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="number of timed runs")
    parser.add_argument(
        "--small", action="store_true", help="test the script on few texts; writes no result"
    )
    arguments = parser.parse_args()
    arguments.passages = 60 if arguments.small else 1000
    arguments.repeats = 1 if arguments.small else arguments.repeats
    with tempfile.TemporaryDirectory() as compiled:
        devices.apply("cpu", Path(compiled))
        results = [measure(collection, arguments) for collection in COLLECTIONS]
    print(show(results))
    if not arguments.small:
        report.write("encode", {"collections": results})
    return int(any(result["vectors_apart"] > TOLERANCE for result in results))


if __name__ == "__main__":
    sys.exit(main())
