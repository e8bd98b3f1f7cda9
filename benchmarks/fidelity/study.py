"""Studies which samples rank the checkpoints of a real training as the whole corpus does.

python -m benchmarks.fidelity.study --data=DIR --work=DIR

Builds the task, trains, writes the two runs that samples are drawn from, compares the samples
with jaxval.fidelity, and computes which checkpoints --confirm=best would screen out. Writes
confirm.json and fidelity.json, .png and .svg to the folder of this file. Steps whose output is
in --work already are not repeated, so use another folder for another size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.fidelity import task
from benchmarks.inputs import add_data
from jaxval.corpus import readers
from jaxval.corpus.datasets import load_queries, parse
from jaxval.metrics.screening import Screening
from jaxval.metrics.significance import compare
from jaxval.records import SelectBy, Standing, Validation
from jaxval.results.ledger import Ledger
from jaxval.sampling import bm25

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

SCREEN_BY = "run:depth=10"
"""Strategy of the sample that --confirm=best is tried on. It pools both runs."""


def write_bm25_run(folder: Path, path: Path) -> None:
    """Writes BM25's ranking in TREC format, as if another program had made it."""
    files = parse(f"study:{folder}")
    ranked = bm25.rank(readers.read_texts(files.corpus), load_queries(files).texts, max(DEPTHS))
    lines = (
        f"{query} Q0 {passage} {rank} {-rank} bm25\n"
        for query, passages in ranked.items()
        for rank, passage in enumerate(passages, start=1)
    )
    path.write_text("".join(lines), encoding="utf-8")


def write_dense_run(work: Path, step: int, path: Path) -> None:
    """Writes the ranking of one early checkpoint, with jaxval.main --write_run=trec."""
    early = work / "early"
    shutil.copytree(work / "checkpoints" / str(step), early / "checkpoints" / str(step))
    (early / "checkpoints" / "train_complete").touch()
    start(
        "jaxval.main",
        *flags(work, early / "checkpoints", early / "out"),
        "--write_run=trec",
    )
    shutil.copy(early / "out" / "runs" / "study" / f"{step}.trec", path)


def flags(work: Path, checkpoints: Path, output: Path, part: str = "set") -> list[str]:
    """Returns flags of an app.

    Args:
      work: Folder of the study.
      checkpoints: Folder of the checkpoints.
      output: Output folder.
      part: Folder of the validation set, within `work`.
    """
    return [
        f"--checkpoint_dir={checkpoints}",
        f"--dataset=study:{work / part}",
        f"--model={work / 'model'}",
        "--passage_max_len=64",
        "--query_max_len=24",
        "--devices=cpu",
        f"--token_dir={work / 'tokens'}",
        f"--output_dir={output}",
    ]


def compare_strategies(work: Path, runs: list[str]) -> None:
    """Compares all strategies with jaxval.fidelity."""
    start(
        "jaxval.fidelity",
        *flags(work, work / "checkpoints", work / "out"),
        *(f"--strategy={strategy}" for strategy in STRATEGIES),
        *runs,
    )


def screen(work: Path, runs: list[str]) -> None:
    """Writes the sample SCREEN_BY, and validates every checkpoint on it in order of steps."""
    sampled = f"--output_dir={work / 'sample'}"
    start(
        *("jaxval.sample", f"--dataset=study:{work / 'set'}"),
        *(f"--strategy={SCREEN_BY}", sampled, *runs),
    )
    start("jaxval.main", *flags(work, work / "checkpoints", work / "screened", "sample"))


def confirm(work: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Applies the rule of --confirm=best to the values on the sample.

    The values on the sample come from the ledger of `screen`, those on the whole corpus from
    the report.

    Args:
      work: Folder of the study.
      report: Content of fidelity.json.

    Returns:
      The content of confirm.json: one row per checkpoint, and the steps that are screened out
      with --order=all and with --order=newest.
    """
    with contextlib.closing(Ledger(work / "screened" / "ledger.sqlite")) as ledger:
        sampled = ledger.validations()
    name = report["measures"][0]
    whole = dict(zip(report["steps"], report["strategies"][0]["means"][name], strict=True))
    orders = {"all": sampled, "newest": sampled[::-1]}
    return {
        "strategy": SCREEN_BY,
        "measure": name,
        "rows": [_row(validation, name, whole) for validation in sampled],
        "screened": {order: _screened(rows, name) for order, rows in orders.items()},
    }


def _screened(sampled: Sequence[Validation], name: str) -> list[int]:
    """Returns the steps that are screened out if validations arrive in this order."""
    by = SelectBy("study", sampled[0].series, name)
    rule = Screening(by, replace(by, series="whole"))
    best, out = None, []
    for validation in sampled:
        comparison = compare(validation.per_query, best.per_query if best else None)
        standing = Standing(comparison.intervals, None, comparison.p_values)
        candidate = replace(validation, standing=standing)
        if rule.verdict(candidate, best):
            out.append(candidate.checkpoint.step)
        best = candidate if best is None or by.score(candidate) > by.score(best) else best
    return out


def _row(sampled: Validation, name: str, whole: dict[int, float]) -> dict[str, Any]:
    standing, step = sampled.standing, sampled.checkpoint.step
    return {
        "step": step,
        "sample": sampled.measures[name],
        "interval": standing and standing.intervals[name],
        "against": standing and standing.against,
        "p_value": standing and standing.p_values.get(name),
        "whole": whole[step],
        "seconds": sum(sampled.seconds.values()),
    }


def start(module: str, *arguments: str) -> None:
    """Runs a module with this Python, and fails if it fails."""
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def train(work: Path, steps: int, save_every: int) -> None:
    """Trains, and saves a checkpoint every `save_every` steps."""
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
    """Runs the steps of the study that have no output yet, and copies the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_data(parser)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for intermediate files"
    )
    parser.add_argument("--queries", type=int, default=300, help="number of validation queries")
    parser.add_argument(
        "--distractors", type=int, default=60_000, help="number of passages of awsdocs-passages"
    )
    parser.add_argument("--layers", type=int, default=1, help="number of layers of the encoder")
    parser.add_argument("--steps", type=int, default=450, help="number of training steps")
    parser.add_argument("--save_every", type=int, default=30, help="steps between checkpoints")
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
    runs = [f"--run={sparse}", f"--run={dense}"]
    if not (work / "out" / "fidelity.json").exists():
        compare_strategies(work, runs)
    if not (work / "screened").exists():
        screen(work, runs)
    report = json.loads((work / "out" / "fidelity.json").read_text())
    (HERE / "confirm.json").write_text(json.dumps(confirm(work, report), indent=1) + "\n")
    for ending in ("json", "png", "svg"):
        shutil.copy(work / "out" / f"fidelity.{ending}", HERE)


if __name__ == "__main__":
    main()
