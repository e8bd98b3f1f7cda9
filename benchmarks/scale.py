"""Measures how time and memory grow with the corpus, without the cost of a model.

    python -m benchmarks.scale [--small]

The corpora are random token ids, with the lengths of MS MARCO's passages. They are written to a
token store and then validated with an encoder that only adds up rows of a table. So the
benchmark measures the pipeline: reading batches, sending them to the device, fetching vectors,
and searching. For each size, storing and validating run in separate processes. Memory is the
peak of the process's anonymous memory, sampled every 20 ms. Pages of memory-mapped files do not
count, because the kernel can take them back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.inputs import Silent
from benchmarks.lengths import msmarco
from jaxval.cli import devices

SIZES = (10_000, 100_000, 1_000_000)
QUERIES, DEPTH, DIM = 1_000, 100, 32
VOCABULARY = 30_000
BATCH_TOKENS = 65_536
CHUNK_FLOATS = (1 << 25) // 768 * DIM
"""Makes a chunk as many passages as it is for vectors of BERT-base's width, 768."""


class Memory:
    """A context manager that measures the peak of this process's anonymous memory.

    Attributes:
      peak: the peak so far, in bytes.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.peak = max(self.peak, anonymous())


def anonymous() -> int:
    """Returns the bytes of this process's memory that are not backed by a file."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


def texts(count: int, seed: int) -> Iterator[Any]:
    """Yields passages of random token ids."""
    import numpy as np

    from jaxval.records import Text

    rng = np.random.default_rng(seed)
    for start in range(0, count, 10_000):
        lengths = msmarco(min(10_000, count - start), rng)
        ids = rng.integers(4, VOCABULARY, int(lengths.sum())).tolist()
        end = 0
        for row, length in enumerate(lengths.tolist(), start):
            yield Text(str(row), tuple(ids[end : end + length]))
            end += length


def tokenizer() -> Any:
    """Returns a tokenizer that only adds special tokens to the ids."""
    import tokenizers

    from jaxval.corpus.tokenizer import Tokenizer

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, "[UNK]"))
    return Tokenizer(backend, (2,), (3,), 0, VOCABULARY, "synthetic")


def token_store(root: Path, count: int, seed: int) -> Any:
    """Builds or opens a token store of `count` texts."""
    from jaxval.corpus.token_store import Recipe, open_or_build

    recipe = Recipe("{text}", "", 256)
    return open_or_build(
        root,
        texts(count, seed),
        f"{count} texts of {seed}",
        tokenizer(),
        recipe,
        find_lines=lambda _: [],
        bar=Silent,
    )


def plan(corpus: Any, queries: Any) -> Any:
    """Returns an EvalPlan for these stores. Its encoder adds up rows of a table."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxval.evaluation.encode import Tower
    from jaxval.evaluation.plan import CorpusGroup, EvalPlan, EvalSet
    from jaxval.metrics.measures import parse
    from jaxval.metrics.ranks import Judgments
    from jaxval.records import ParamsPaths

    def encode(params: Any, ids: Any, mask: Any) -> Any:
        return jnp.where(mask[..., None], params["table"][ids], 0).sum(axis=1)

    names = tuple(str(row) for row in range(queries.count))
    rows = np.arange(queries.count)
    judgments = Judgments(rows, rows, np.ones_like(rows), queries.count)
    eval_set = EvalSet("dev", "synthetic", queries, names, judgments)
    tower = Tower(encode, jax.devices(), BATCH_TOKENS, CHUNK_FLOATS)
    return EvalPlan(
        abstract_params={"table": jax.ShapeDtypeStruct((VOCABULARY, DIM), "float32")},
        query_tower=tower,
        passage_tower=tower,
        groups=(CorpusGroup(corpus, (eval_set,)),),
        devices=tuple(jax.devices()),
        params_paths=ParamsPaths(),
        base=None,
        similarity="dot",
        index_dtype="float32",
        depth=DEPTH,
        measures=tuple(parse(["RR@10", "nDCG@10"], DEPTH)),
    )


def time_validation(eval_plan: Any) -> dict[str, float]:
    """Runs a validation. Returns its seconds by stage and `in all`."""
    import numpy as np

    from jaxval.checkpoints.restore import Restored
    from jaxval.evaluation.validate import validate

    table = np.random.default_rng(0).standard_normal((VOCABULARY, DIM), np.float32)
    start = time.perf_counter()
    restored = Restored({"table": table}, "params")
    (result,) = validate("step 1", restored, eval_plan, ["synthetic"], Silent)
    seconds = time.perf_counter() - start
    return {"in all": seconds, **result.seconds}


def store(root: Path, count: int) -> dict[str, Any]:
    """Writes a token store in this process. Returns its time, memory and padding."""
    with Memory() as memory:
        start = time.perf_counter()
        corpus = token_store(root, count, seed=1)
        seconds = time.perf_counter() - start
    return {
        "passages": count,
        "padding": 1 - corpus.tokens / corpus.padded,
        "widths": [bucket.width for bucket in corpus.buckets],
        "store_seconds": seconds,
        "store_peak_bytes": memory.peak,
    }


def validate_all(root: Path, count: int) -> dict[str, Any]:
    """Validates twice in this process, and measures the second, which does not compile."""
    devices.apply("cpu", root / "compiled")
    eval_plan = plan(token_store(root, count, seed=1), token_store(root, QUERIES, seed=2))
    time_validation(eval_plan)
    with Memory() as memory:
        stages = time_validation(eval_plan)
    rate = count / (stages["passages"] + stages["search"])
    return {"seconds": stages, "peak_bytes": memory.peak, "passages_a_second": rate}


PARTS = {"store": store, "validate": validate_all}


def measure(size: int) -> dict[str, Any]:
    """Measures one size, each part in a separate process."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        for part in PARTS:
            command = [
                sys.executable,
                "-m",
                "benchmarks.scale",
                "--child",
                part,
                root,
                str(size),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            result |= json.loads(done.stdout.splitlines()[-1])
    return result


def show(results: list[dict[str, Any]]) -> str:
    """Returns a table with one row per size."""
    headers = ["passages", "storing, s", "MiB", "validating, s", "µs/passage"]
    headers += ["passages/s", "MiB", "padding"]
    rows = [
        [
            f"{size['passages']:,}",
            f"{size['store_seconds']:.1f}",
            f"{size['store_peak_bytes'] / 2**20:.0f}",
            f"{size['seconds']['in all']:.2f}",
            f"{1e6 * size['seconds']['in all'] / size['passages']:.1f}",
            f"{size['passages_a_second']:,.0f}",
            f"{size['peak_bytes'] / 2**20:.0f}",
            f"{100 * size['padding']:.1f}%",
        ]
        for size in results
    ]
    return report.table(headers, rows)


def main() -> int:
    """Runs the benchmark, or one part of it in a child process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--small", action="store_true", help="only the two smaller sizes; writes no result"
    )
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        part, root, size = arguments.child
        print(json.dumps(PARTS[part](Path(root), int(size))))
        return 0
    results = [measure(size) for size in SIZES[: 2 if arguments.small else None]]
    print(show(results))
    if not arguments.small:
        report.write("scale", {"queries": QUERIES, "depth": DEPTH, "sizes": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
