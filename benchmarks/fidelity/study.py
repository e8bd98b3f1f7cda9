"""Which sample ranks the checkpoints of a real training run as the whole corpus does?

python -m benchmarks.fidelity.study --data=DIR --work=DIR

Builds the task, trains, writes the two runs to sample by, has jaxval.fidelity compare, and puts
fidelity.json, .png and .svg beside this file. What is in --work already is not made again:
another size needs another folder.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.fidelity import task
from benchmarks.inputs import add_data
from jaxval.corpus import bm25, readers
from jaxval.corpus.datasets import load_queries, parse

HERE = Path(__file__).parent
DEPTHS = (1, 3, 10, 30, 100)
SIZES = (100, 300, 1000, 3000, 10_000)
STRATEGIES = (
    *(f"run:depth={depth}@bm25" for depth in DEPTHS),
    *(f"run:depth={depth}@dense" for depth in DEPTHS),
    *(f"run:depth={depth}@bm25,dense" for depth in DEPTHS),
    *(f"random:size={size}" for size in SIZES),
    *(f"run:depth={depth}+random:size=500@bm25,dense" for depth in DEPTHS[:3]),
)


def write_bm25_run(folder: Path, path: Path) -> None:
    """BM25's first hundred of each query, as a user has them of another program."""
    files = parse(f"study:{folder}")
    ranked = bm25.rank(readers.read_texts(files.corpus), load_queries(files).texts, max(DEPTHS))
    lines = (
        f"{query} Q0 {passage} {rank} {-rank} bm25\n"
        for query, passages in ranked.items()
        for rank, passage in enumerate(passages, start=1)
    )
    path.write_text("".join(lines), encoding="utf-8")


def write_dense_run(work: Path, step: int, path: Path) -> None:
    """What jaxval.main --write_run writes of one early checkpoint."""
    early = work / "early"
    shutil.copytree(work / "checkpoints" / str(step), early / "checkpoints" / str(step))
    (early / "checkpoints" / "train_complete").touch()
    start(
        "jaxval.main",
        *flags(work, early / "checkpoints", early / "out"),
        "--write_run=trec",
    )
    shutil.copy(early / "out" / "runs" / "study" / f"{step}.trec", path)


def flags(work: Path, checkpoints: Path, output: Path) -> list[str]:
    return [
        f"--checkpoint_dir={checkpoints}",
        f"--dataset=study:{work / 'set'}",
        f"--model={work / 'model'}",
        "--passage_max_len=64",
        "--query_max_len=24",
        "--devices=cpu",
        f"--token_dir={work / 'tokens'}",
        f"--output_dir={output}",
    ]


def start(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def train(work: Path, steps: int, save_every: int) -> None:
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    start(
        "benchmarks.fidelity.train",
        f"--pairs={work / 'train.jsonl'}",
        f"--model={work / 'model'}",
        f"--checkpoint_dir={work / 'checkpoints'}",
        f"--steps={steps}",
        f"--save_every={save_every}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_data(parser)
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is made")
    parser.add_argument("--queries", type=int, default=300, help="validation queries")
    parser.add_argument("--distractors", type=int, default=60_000, help="of AWS's passages")
    parser.add_argument("--layers", type=int, default=1, help="that the encoder is cut to")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--save_every", type=int, default=30)
    args = parser.parse_args()
    work = args.work
    if not (work / "train.jsonl").exists():
        task.cut_model(work / "model", args.model, args.layers)
        task.build(work, args.data, args.queries, args.distractors)
    if not (work / "checkpoints" / "train_complete").exists():
        train(work, args.steps, args.save_every)
    sparse, dense = work / "bm25.trec", work / "dense.trec"
    if not sparse.exists():
        write_bm25_run(work / "set", sparse)
    if not dense.exists():
        write_dense_run(work, args.save_every, dense)
    start(
        "jaxval.fidelity",
        *flags(work, work / "checkpoints", work / "out"),
        *(f"--strategy={strategy}" for strategy in STRATEGIES),
        f"--run={sparse}",
        f"--run={dense}",
    )
    for form in ("json", "png", "svg"):
        shutil.copy(work / "out" / f"fidelity.{form}", HERE)


if __name__ == "__main__":
    main()
