"""Measures the time of a validation that is not encoding, and the bytes that a restore reads.

    python -m benchmarks.overhead --data=DIR [--small]

`jaxval.main` validates two checkpoints on the first 10,000 passages of awsdocs-passages, on the
CPU. Each checkpoint is a whole train state with Adam's moments. The time from one row of the
ledger to the next, except for the encoding of queries and passages, counts as overhead:
restoring, transfer to the devices, the part of the search that does not overlap with encoding,
measures, significance, ledger and trackers. The first row is not counted, because it includes
compilation.

The bytes that a restore reads are counted by the kernel (`rchar` in /proc/self/io).
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import inputs, report
from jaxval.cli import devices

COLLECTION = "awsdocs-passages"
STEPS = (10, 20)
STAGES = ("restore", "queries", "passages", "search", "measures")
ENCODING = ("queries", "passages")


def train_state(model: Path) -> Any:
    """Returns the model's weights in a TrainState, as a trainer saves it.

    Its moments are random, because compression would remove zeros.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax.training.train_state import TrainState

    from jaxval.encoders import folder

    rng = np.random.default_rng(0)

    def noise(leaf: Any) -> Any:
        return jnp.asarray(1e-4 * rng.standard_normal(leaf.shape), leaf.dtype)

    params, _ = folder.load_weights(folder.read(str(model)))
    state = TrainState.create(apply_fn=jnp.dot, params=params, tx=optax.adamw(1e-5))
    moments = [noise(leaf) if leaf.ndim else leaf for leaf in jax.tree.leaves(state.opt_state)]
    structure = jax.tree.structure(state.opt_state)
    return state.replace(opt_state=jax.tree.unflatten(structure, moments))


def save(model: Path, root: Path) -> None:
    """Writes the checkpoints with a CheckpointManager."""
    import orbax.checkpoint as ocp

    state = train_state(model)
    with ocp.CheckpointManager(root) as manager:
        for step in STEPS:
            manager.save(step, args=ocp.args.StandardSave(state))


def bytes_of_a_restore(model: Path, root: Path) -> dict[str, float]:
    """Returns the bytes that a restore reads, and the sizes of parameters and checkpoint."""
    import jax

    from jaxval.checkpoints.commit import committed
    from jaxval.checkpoints.restore import restore
    from jaxval.encoders import folder

    checkpoint = committed(root)[0]
    abstract = folder.build(folder.read(str(model))).abstract_params()
    restore(checkpoint, abstract)  # so that imports are not counted
    before = _read_so_far()
    restored = restore(checkpoint, abstract)
    read = _read_so_far() - before
    leaves = sum(leaf.nbytes for leaf in jax.tree.leaves(restored.params))
    files = Path(checkpoint.path).rglob("*")
    whole = sum(file.stat().st_size for file in files if file.is_file())
    return {
        "read": read,
        "parameters": leaves,
        "checkpoint": whole,
        "ratio": read / leaves,
        "seconds": restored.seconds,
    }


def _read_so_far() -> int:
    (line,) = [
        line
        for line in Path("/proc/self/io").read_text().splitlines()
        if line.startswith("rchar")
    ]
    return int(line.split()[1])


def collection(data: Path, target: Path, passages: int) -> None:
    """Writes the first passages of the collection, and all its queries, in BEIR format.

    Each query gets the first passage as its relevant one, because the true ones may be missing.
    The measures are not used.
    """
    from jaxval.corpus import readers

    source = data / COLLECTION
    (target / "qrels").mkdir(parents=True)
    shutil.copy(source / "queries.jsonl", target)
    (corpus,) = source.glob("corpus.jsonl*")
    texts = list(itertools.islice(readers.read_texts(corpus), passages))
    with (target / "corpus.jsonl").open("w") as out:
        for text in texts:
            print(
                json.dumps({"_id": text.id, "title": text.title, "text": text.text}), file=out
            )
    with (target / "qrels/test.tsv").open("w") as out:
        for query in readers.read_texts(source / "queries.jsonl"):
            print(query.id, texts[0].id, 1, sep="\t", file=out)


def run(model: Path, root: Path) -> list[dict[str, float]]:
    """Runs jaxval. Returns the seconds of each row after the first, by stage and `in all`."""
    flags = {
        "checkpoint_dir": root / "checkpoints",
        "output_dir": root / "out",
        "dataset": f"dev:{root / 'data'}",
        "model": model,
        "devices": "cpu",
        "max_validations": len(STEPS),
    }
    listed = [f"--{name}={value}" for name, value in flags.items()]
    subprocess.run([sys.executable, "-m", "jaxval.main", *listed], check=True)
    return list(_rows(root / "out/ledger.sqlite"))


def _rows(ledger: Path) -> Iterator[dict[str, float]]:
    with sqlite3.connect(ledger) as db:
        rows = db.execute("SELECT finished, seconds FROM validation ORDER BY id").fetchall()
    for (before, _), (after, seconds) in itertools.pairwise(rows):
        stages = json.loads(seconds)
        yield {name: stages[name] for name in STAGES} | {"in all": after - before}


def share(row: dict[str, float]) -> float:
    """Returns the share of a row's time that is not encoding."""
    return 1 - sum(row[name] for name in ENCODING) / row["in all"]


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    inputs.add_data(parser)
    parser.add_argument(
        "--small", action="store_true", help="test the script on few texts; writes no result"
    )
    arguments = parser.parse_args()
    passages = 600 if arguments.small else 10_000
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        devices.apply("cpu", root / "compiled")
        save(arguments.model, root / "checkpoints")
        read = bytes_of_a_restore(arguments.model, root / "checkpoints")
        collection(arguments.data, root / "data", passages)
        rows = run(arguments.model, root)
    not_encoding = report.median([share(row) for row in rows])
    lines = [[name, *(f"{row[name]:.2f}" for row in rows)] for name in (*STAGES, "in all")]
    print(report.table(["seconds", *(f"step {step}" for step in STEPS[1:])], lines))
    print(
        f"\nnot encoding: {100 * not_encoding:.1f}% of the time of a validation with"
        f" {passages:,} passages"
    )
    print(
        f"a restore read {read['read']:,} bytes in {read['seconds']:.2f} s,"
        f" {read['ratio']:.3f} times the {read['parameters']:,} bytes of the parameters;"
        f" the checkpoint has {read['checkpoint']:,} bytes"
    )
    if not arguments.small:
        result = {
            "passages": passages,
            "rows": rows,
            "not_encoding": not_encoding,
            "restore": read,
        }
        report.write("overhead", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
