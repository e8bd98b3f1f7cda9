"""Compares the time of a validation in jaxval and asyncval (Zhuang & Zuccon, SIGIR 2022).

    python -m benchmarks.validation --data=DIR --peer_python=PATH [--repeats=3] [--small]

Both tools are started from their command lines on the same CPU, with three checkpoints waiting:
all-MiniLM-L6-v2 in float32, in the format that each tool reads. A result is complete when its
line appears in the file that the tool writes. Both files are polled in the same way.

- `cold`: seconds from the start of the process to the first result, without tokens, programs or
  caches from an earlier run. For asyncval it includes tokenizing, which its users do with a
  separate script.
- `later`: seconds from one result to the next in the same process.

Exits with 1 if the measures of the two tools differ.
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
"""Texts per batch: asyncval's default, and the fastest of 1 to 128 on two cores of a Xeon."""
POLL = 0.02
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # so that network requests are not measured

NOTES = f"""\
float32; passages are truncated to {PASSAGE_LEN} tokens, queries to {QUERY_LEN}; depth {DEPTH}.
asyncval pads every text to these lengths (padding='max_length', which no flag changes); jaxval
batches texts of similar length. asyncval uses {PEER_BATCH} texts per batch, its default and the
fastest of those tried. asyncval writes no run files; jaxval runs its significance tests."""


@dataclass(frozen=True)
class World:
    """Inputs of both tools.

    Attributes:
      root: Folder with the validation set in data/, and checkpoints in orbax/ and huggingface/.
      model: Folder of the model and its tokenizer.
      peer_python: Interpreter that has asyncval.
    """

    root: Path
    model: Path
    peer_python: str


@dataclass(frozen=True)
class Run:
    """One run of a tool over all checkpoints.

    Attributes:
      cold: Seconds to the first result, including `tokenizing`.
      later: Seconds from each result to the next.
      measures: Measure -> value, for each checkpoint.
      tokenizing: Seconds that tokenizing took before the process started; 0 for jaxval.
    """

    cold: float
    later: list[float]
    measures: list[dict[str, float]]
    tokenizing: float = 0.0


def build(world: World, data: Path, passages: int, queries: int) -> None:
    """Writes the validation set and the checkpoints to the world's folder.

    All checkpoints have the same parameters.

    Args:
      world: The inputs.
      data: BEIR folder of the collection.
      passages: Number of passages to take from the collection.
      queries: Number of queries to take from the collection.
    """
    take(data, world.root / "data", passages, queries)
    convert = ["-m", "jaxval.convert", f"--model={world.model}"]
    target = world.root / "orbax"
    _call([sys.executable, *convert, f"--checkpoint_dir={target}", "--step=0"])
    (world.root / "huggingface/0").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(world.model / name, world.root / "huggingface/0" / name)
    for step in range(1, CHECKPOINTS):
        for kind in ("orbax", "huggingface"):
            shutil.copytree(world.root / kind / "0", world.root / kind / str(step))


def take(data: Path, target: Path, passages: int, queries: int) -> None:
    """Copies the first passages and queries of a BEIR folder, with qrels in TREC format."""
    (target / "qrels").mkdir(parents=True)
    corpus = _lines(data / "corpus.jsonl")[:passages]
    query_lines = _lines(data / "queries.jsonl")[:queries]
    judged = [row.split("\t") for row in _lines(data / "qrels/test.tsv")]
    ids = {json.loads(line)["_id"] for line in query_lines}
    qrels = [f"{query}\t0\t{doc}\t{grade}" for query, doc, grade in judged if query in ids]
    _write_lines(target / "corpus.jsonl", corpus)
    _write_lines(target / "queries.jsonl", query_lines)
    _write_lines(target / "qrels/test.tsv", qrels)


def run_jaxval(world: World, output: Path) -> Run:
    """Runs jaxval over all checkpoints, with an empty output directory."""
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
    """Tokenizes the texts, then runs asyncval over all checkpoints."""
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


def _measures(values: dict[str, float]) -> dict[str, float]:
    """Returns the measures by their names, without asyncval's prefix `query set 0: `."""
    by_name = {key.rpartition(": ")[2]: value for key, value in values.items()}
    return {name: by_name[name] for name in MEASURES}


def follow(
    command: Sequence[str], results: Path, log: Path
) -> list[tuple[float, dict[str, Any]]]:
    """Runs a command, and waits until it has ended and written all results.

    Ends this process with a message if the command fails.

    Args:
      command: The command.
      results: File to which the command writes one line of JSON per checkpoint.
      log: File for the output of the command.

    Returns:
      (seconds from the start of the command until the line appeared, record) of each line.
    """
    records: list[tuple[float, dict[str, Any]]] = []
    ended = False
    with log.open("wb") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | OFFLINE, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            while len(records) < CHECKPOINTS and not ended:
                time.sleep(POLL)
                ended = (
                    process.poll() is not None
                )  # before the file is read, so that no line is missed
                lines = _lines(results) if results.exists() else []
                now = time.perf_counter() - start
                records += [(now, json.loads(line)) for line in lines[len(records) :]]
            status = process.wait()
        finally:
            process.kill()
    if status or len(records) < CHECKPOINTS:
        sys.exit(
            f"status {status}, {len(records)} results: {command}\n{log.read_text()[-3000:]}"
        )
    return records


def _lines(path: Path) -> list[str]:
    """Returns the complete lines. Texts may contain separators that splitlines splits at."""
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
    """Runs both tools in turn, and returns the runs of each."""
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for repeat in range(repeats):
        for side, run in SIDES.items():
            output = world.root / f"{side}-{repeat}"
            output.mkdir()
            runs[side].append(run(world, output))
            last = runs[side][-1]
            later = " ".join(f"{seconds:.1f}" for seconds in last.later)
            print(f"{side}: cold {last.cold:.1f} s, later {later} s", flush=True)
    return runs


def summarize(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Returns all times, the ratios of medians, and the largest difference of measures."""
    cold = {side: [run.cold for run in of_side] for side, of_side in runs.items()}
    later = {side: [s for run in of_side for s in run.later] for side, of_side in runs.items()}
    return {
        "cold_seconds": cold,
        "later_seconds": later,
        "tokenizing_seconds": {"asyncval": [run.tokenizing for run in runs["asyncval"]]},
        "ratio": {"cold": _ratio(cold), "later": _ratio(later)},
        "measures": {side: of_side[0].measures[0] for side, of_side in runs.items()},
        "largest_difference": _largest_difference(runs),
    }


def _ratio(seconds: dict[str, list[float]]) -> float:
    return report.median(seconds["asyncval"]) / report.median(seconds["jaxval"])


def _largest_difference(runs: dict[str, list[Run]]) -> float:
    every = [values for of_side in runs.values() for run in of_side for values in run.measures]
    return max(abs(values[name] - every[0][name]) for values in every for name in MEASURES)


def show(result: dict[str, Any]) -> str:
    """Returns the result as a table."""
    rows = [
        [
            f"{name}, s",
            *(report.spread(result[f"{name}_seconds"][side]) for side in SIDES),
            f"{result['ratio'][name]:.2f}",
        ]
        for name in ("cold", "later")
    ]
    tokenizing = report.spread(result["tokenizing_seconds"]["asyncval"])
    rows.insert(1, ["  of it tokenizing, s", "", tokenizing, ""])
    for name in MEASURES:
        values = (f"{result['measures'][side][name]:.4f}" for side in SIDES)
        rows.append([name, *values, ""])
    return report.table(["", *SIDES, "asyncval / jaxval"], rows)


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    inputs.add_data(parser)
    parser.add_argument(
        "--peer_python",
        default=sys.executable,
        help="interpreter that has asyncval (default: this one)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="number of timed runs")
    parser.add_argument(
        "--small", action="store_true", help="one run with 200 passages; writes no result"
    )
    return parser.parse_args()


def main() -> int:
    """Runs the benchmark. Returns 1 if the measures of the two tools differ."""
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # so that a cold run compiles
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `follow` then ends the child
    sys.exit(main())
