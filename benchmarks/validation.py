"""One checkpoint to its measures: jaxval against asyncval (Zhuang & Zuccon, SIGIR 2022).

    python -m benchmarks.validation --data=DIR --peer_python=PATH [--repeats=3] [--small]

Both are started as their users start them, on the same CPU, and find three checkpoints that
wait: all-MiniLM-L6-v2, in float32, each in the form that they read. A result is out when its
line is in the file that each writes, and both files are watched in the same way.

- `cold`: from the start of the process, with no token, compilation or cache of an earlier
  one, to the first result. For asyncval, tokenizing stands before: a script of the user's.
- `later`: from one result to the next, in the same process.

Ends with status 1 if their measures are not equal.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import inputs, report

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
MEASURES = ("RR@10", "nDCG@10")
TOLERANCE = 1e-3
CHECKPOINTS = 3
DEPTH = 100
PASSAGE_LEN, QUERY_LEN = 256, 32
PEER_BATCH = 8
"""Texts a batch: asyncval's default, and of 1 to 128 the fastest on two cores of a Xeon."""
POLL = 0.02
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # nobody waits for a hub

NOTES = f"""\
float32; passages are cut at {PASSAGE_LEN} tokens, queries at {QUERY_LEN}; depth {DEPTH}.
asyncval pads every text to these lengths (padding='max_length', which no flag changes);
jaxval batches texts of like length. asyncval's batches: {PEER_BATCH} texts, its default and
the fastest of those tried. asyncval's run files are off; jaxval's significance tests are on."""


@dataclass(frozen=True)
class World:
    """What both sides are given.

    Attributes:
      root: a folder with data/, orbax/ and huggingface/, the latter two of checkpoints.
      model: the folder of the model, with its tokenizer.
      peer_python: the interpreter that has asyncval.
    """

    root: Path
    model: Path
    peer_python: str


@dataclass(frozen=True)
class Run:
    """One process, or the tokenizing and the process.

    Attributes:
      cold: seconds to the first result, those of tokenizing included.
      later: seconds to each of the others.
      measures: of each checkpoint.
      tokenizing: seconds before the process, in a script of the user's.
    """

    cold: float
    later: list[float]
    measures: list[dict[str, float]]
    tokenizing: float = 0.0


def build(world: World, data: Path, passages: int, queries: int) -> None:
    """Fills the world's folder: the first passages and queries, and equal checkpoints."""
    take(data, world.root / "data", passages, queries)
    convert = ["-m", "jaxval.convert", f"--model={world.model}"]
    target = world.root / "orbax"
    _call([sys.executable, *convert, f"--checkpoint_dir={target}", "--step=0"])
    (world.root / "huggingface/0").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(world.model / name, world.root / "huggingface/0" / name)
    for step in range(1, CHECKPOINTS):
        for form in ("orbax", "huggingface"):
            shutil.copytree(world.root / form / "0", world.root / form / str(step))


def take(data: Path, target: Path, passages: int, queries: int) -> None:
    """Copies the first passages and queries of a BEIR folder; the judgements as TREC's."""
    (target / "qrels").mkdir(parents=True)
    corpus = _lines(data / "corpus.jsonl")[:passages]
    asked = _lines(data / "queries.jsonl")[:queries]
    judged = [row.split("\t") for row in _lines(data / "qrels/test.tsv")]
    ids = {json.loads(line)["_id"] for line in asked}
    qrels = [f"{query}\t0\t{doc}\t{grade}" for query, doc, grade in judged if query in ids]
    _write_lines(target / "corpus.jsonl", corpus)
    _write_lines(target / "queries.jsonl", asked)
    _write_lines(target / "qrels/test.tsv", qrels)


def run_jaxval(world: World, output: Path) -> Run:
    """jaxval over all checkpoints, from an empty output directory."""
    options = {
        "checkpoint_dir": world.root / "orbax",
        "output_dir": output,
        "dataset": f"dev:{world.root / 'data'}",
        "model": world.model,
        "measures": ",".join(MEASURES),
        "depth": DEPTH,
        "passage_max_len": PASSAGE_LEN,
        "query_max_len": QUERY_LEN,
        "devices": "cpu",
        "max_validations": CHECKPOINTS,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return _run([sys.executable, "-m", "jaxval.main", *flags], output)


def run_asyncval(world: World, output: Path) -> Run:
    """asyncval over all checkpoints; the texts are tokenized first."""
    start = time.perf_counter()
    _tokenize(world, "corpus.jsonl", output / "corpus/split00.json", PASSAGE_LEN)
    _tokenize(world, "queries.jsonl", output / "queries.json", QUERY_LEN)
    tokenizing = time.perf_counter() - start
    options = {
        "ckpts_dir": world.root / "huggingface",
        "output_dir": output,
        "candidate_dir": output / "corpus",
        "query_files": output / "queries.json",
        "qrel_file": world.root / "data/qrels/test.tsv",
        "tokenizer_name_or_path": world.model,
        "cache_dir": output / "cache",
        "depth": DEPTH,
        "p_max_len": PASSAGE_LEN,
        "q_max_len": QUERY_LEN,
        "per_device_eval_batch_size": PEER_BATCH,
        "device": "cpu",
        "use_cpu": True,
        "write_run": False,
        "report_to": "jsonl",
        "max_num_valid": CHECKPOINTS,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [world.peer_python, str(PEERS / "run_asyncval.py"), *flags]
    return _run([*command, "--metrics", *MEASURES], output, tokenizing)


def _tokenize(world: World, source: str, target: Path, length: int) -> None:
    target.parent.mkdir(exist_ok=True)
    script, texts = PEERS / "tokenize_for_asyncval.py", world.root / "data" / source
    _call([world.peer_python, *map(str, (script, world.model, texts, target, length))])


def _run(command: Sequence[str], output: Path, tokenizing: float = 0.0) -> Run:
    results = follow(command, output / "metrics.jsonl", output / "log.txt")
    times = [seconds for seconds, _ in results]
    return Run(
        cold=tokenizing + times[0],
        later=[after - before for before, after in pairwise(times)],
        measures=[_measures(record["measures"]) for _, record in results],
        tokenizing=tokenizing,
    )


def _measures(found: dict[str, float]) -> dict[str, float]:
    """By their names; asyncval puts `query set 0: ` before."""
    by_name = {key.rpartition(": ")[2]: value for key, value in found.items()}
    return {name: by_name[name] for name in MEASURES}


def follow(
    command: Sequence[str], results: Path, log: Path
) -> list[tuple[float, dict[str, Any]]]:
    """Runs a command to its end.

    Returns:
      Each line of `results`, with the seconds from the command's start to its appearance.
    """
    found: list[tuple[float, dict[str, Any]]] = []
    ended = False
    with log.open("wb") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | OFFLINE, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            while len(found) < CHECKPOINTS and not ended:
                time.sleep(POLL)
                ended = process.poll() is not None  # before the last look
                lines = _lines(results) if results.exists() else []
                now = time.perf_counter() - start
                found += [(now, json.loads(line)) for line in lines[len(found) :]]
            status = process.wait()
        finally:
            process.kill()
    if status or len(found) < CHECKPOINTS:
        sys.exit(f"status {status}, {len(found)} results: {command}\n{log.read_text()[-3000:]}")
    return found


def _lines(path: Path) -> list[str]:
    """The complete ones. A text may hold other separators than this, so not splitlines."""
    return path.read_text().split("\n")[:-1]


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"status {done.returncode}: {command}\n{done.stderr[-3000:]}")


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


SIDES: dict[str, Callable[[World, Path], Run]] = {
    "jaxval": run_jaxval,
    "asyncval": run_asyncval,
}


def measure(world: World, repeats: int) -> dict[str, list[Run]]:
    """The runs of each side, one after the other by turns."""
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for repeat in range(repeats):
        for side, run in SIDES.items():
            output = world.root / f"{side}-{repeat}"
            output.mkdir()
            runs[side].append(run(world, output))
            done = runs[side][-1]
            later = " ".join(f"{seconds:.1f}" for seconds in done.later)
            print(f"{side}: cold {done.cold:.1f} s, later {later} s", flush=True)
    return runs


def summarize(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """All values, the ratios of their medians, and by how much the measures differ."""
    cold = {side: [run.cold for run in each] for side, each in runs.items()}
    later = {side: [s for run in each for s in run.later] for side, each in runs.items()}
    return {
        "cold_seconds": cold,
        "later_seconds": later,
        "tokenizing_seconds": {"asyncval": [run.tokenizing for run in runs["asyncval"]]},
        "ratio": {"cold": _ratio(cold), "later": _ratio(later)},
        "measures": {side: each[0].measures[0] for side, each in runs.items()},
        "largest_difference": _largest_difference(runs),
    }


def _ratio(seconds: dict[str, list[float]]) -> float:
    return report.median(seconds["asyncval"]) / report.median(seconds["jaxval"])


def _largest_difference(runs: dict[str, list[Run]]) -> float:
    found = [measures for each in runs.values() for run in each for measures in run.measures]
    return max(abs(one[name] - found[0][name]) for one in found for name in MEASURES)


def show(result: dict[str, Any]) -> str:
    """The result as a table."""
    rows = [
        [
            f"{name}, s",
            *(report.spread(result[f"{name}_seconds"][side]) for side in SIDES),
            f"{result['ratio'][name]:.2f}",
        ]
        for name in ("cold", "later")
    ]
    tokenizing = report.spread(result["tokenizing_seconds"]["asyncval"])
    rows.insert(1, ["  tokenizing before", "", tokenizing, ""])
    for name in MEASURES:
        values = (f"{result['measures'][side][name]:.4f}" for side in SIDES)
        rows.append([name, *values, ""])
    return report.table(["", *SIDES, "asyncval / jaxval"], rows)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("benchmarks.validation", description=__doc__)
    inputs.add_data(parser)
    parser.add_argument("--peer_python", default=sys.executable, help="that has asyncval")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="200 passages, once; no record")
    return parser.parse_args()


def main() -> int:
    """Measures, prints, records, and compares the measures of both sides."""
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # or nothing would be cold
    chosen = arguments()
    passages, queries, repeats = (200, 100, 1) if chosen.small else (2067, 1000, chosen.repeats)
    peer = report.versions("asyncval", "torch", "transformers", python=chosen.peer_python)
    with tempfile.TemporaryDirectory(prefix="jaxval-validation-") as root:
        world = World(Path(root), chosen.model, chosen.peer_python)
        build(world, chosen.data / "squad-dev", passages, queries)
        result = summarize(measure(world, repeats))
    print(
        f"\n{passages:,} passages and {queries:,} queries of squad-dev",
        show(result),
        NOTES,
        sep="\n",
    )
    if not chosen.small:
        settings = {"passages": passages, "queries": queries, "peer": peer}
        report.write("validation", settings | result)
    if result["largest_difference"] <= TOLERANCE:
        return 0
    print(f"the measures differ by {result['largest_difference']:.4f}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the child, too
    sys.exit(main())
