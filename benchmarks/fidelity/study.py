"""Which sample ranks the checkpoints of a real training run as the whole corpus does?

python -m benchmarks.fidelity.study --data=DIR --work=DIR

Builds the task, trains, writes the two runs to sample by, has jaxval.fidelity compare, and
asks what --confirm=best does with one of the samples. Puts fidelity.json, .png and .svg and
confirm.json beside this file. What is in --work already is not made again: another size needs
another folder.
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
"""Of both runs: the sample that --confirm=best is tried on."""


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


def flags(work: Path, checkpoints: Path, output: Path, part: str = "set") -> list[str]:
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


def hold_against(work: Path, runs: list[str]) -> None:
    start(
        "jaxval.fidelity",
        *flags(work, work / "checkpoints", work / "out"),
        *(f"--strategy={strategy}" for strategy in STRATEGIES),
        *runs,
    )


def screen(work: Path, runs: list[str]) -> None:
    """As a user does who has the sample alone: every checkpoint, in the order it was saved."""
    sampled = f"--output_dir={work / 'sample'}"
    start(
        *("jaxval.sample", f"--dataset=study:{work / 'set'}"),
        *(f"--strategy={SCREEN_BY}", sampled, *runs),
    )
    start("jaxval.main", *flags(work, work / "checkpoints", work / "screened", "sample"))


def confirm(work: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Whom --confirm=best screens out: its own rule, on the app's own values of the sample, in
    the order of the training and from the newest back. The whole's values are fidelity's."""
    with contextlib.closing(Ledger(work / "screened" / "ledger.sqlite")) as ledger:
        sampled = ledger.validations()
    name = report["measures"][0]
    whole = dict(zip(report["steps"], report["strategies"][0]["means"][name], strict=True))
    orders = {"all": sampled, "newest": sampled[::-1]}
    return {
        "strategy": SCREEN_BY,
        "measure": name,
        "rows": [_row(each, name, whole) for each in sampled],
        "screened": {order: _screened(rows, name) for order, rows in orders.items()},
    }


def _screened(sampled: Sequence[Validation], name: str) -> list[int]:
    by = SelectBy("study", sampled[0].series, name)
    rule = Screening(by, replace(by, series="whole"))
    best, out = None, []
    for each in sampled:
        found = compare(each.per_query, best.per_query if best else None)
        judged = replace(each, standing=Standing(found.intervals, None, found.p_values))
        if rule.verdict(judged, best):
            out.append(each.checkpoint.step)
        best = judged if best is None or by.worth(judged) > by.worth(best) else best
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
    runs = [f"--run={sparse}", f"--run={dense}"]
    if not (work / "out" / "fidelity.json").exists():
        hold_against(work, runs)
    if not (work / "screened").exists():
        screen(work, runs)
    report = json.loads((work / "out" / "fidelity.json").read_text())
    (HERE / "confirm.json").write_text(json.dumps(confirm(work, report), indent=1) + "\n")
    for form in ("json", "png", "svg"):
        shutil.copy(work / "out" / f"fidelity.{form}", HERE)


if __name__ == "__main__":
    main()
