"""Holds samples of a corpus against the whole: which one ranks checkpoints as it does?

python -m jaxval.fidelity --flagfile=val.flags --strategy=random:size=1000
--strategy=run:depth=10 --run=bm25.trec --output_dir=OUT
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from jaxval.atomic import replace_file
from jaxval.cli import devices, flags, frame
from jaxval.config import Config
from jaxval.errors import UserError
from jaxval.records import Checkpoint
from jaxval.results.console import progress
from jaxval.sampling import figures, strategies

if TYPE_CHECKING:
    from jaxval.sampling.compare import PooledStrategy, Report

_STEPS = absl_flags.DEFINE_list(
    "steps", [], "Steps of the checkpoints to compare, e.g. 0,100,200. Empty: all committed."
)
_STRATEGY = absl_flags.DEFINE_multi_string(
    "strategy",
    [],
    "Required. A strategy as for jaxval.sample: run:depth=N, bm25:depth=N, dense:depth=N,"
    " random:size=N, or several joined by +. run:depth=N@NAME,NAME pools those runs alone,"
    " named as their files up to the first dot. May be repeated; the whole corpus is always"
    " there.",
)
_RUN = absl_flags.DEFINE_multi_string(
    "run",
    [],
    "A run file for run:depth=N, in the form of TREC or MS MARCO, plain or .gz. May be"
    " repeated; a strategy that names none pools all.",
)
_DENSE_STEP = absl_flags.DEFINE_integer(
    "dense_step",
    None,
    "Whose ranking dense:depth=N takes: a step of --checkpoint_dir. The corpus is encoded with"
    " it once more.",
)
_SEED = absl_flags.DEFINE_integer(
    "seed", 0, "Decides what random:size=N draws.", lower_bound=0, upper_bound=2**63 - 1
)

_TOPICS: frame.Topics = {
    "Which checkpoints": (flags.SHARED["checkpoint_dir"], _STEPS),
    "Which samples": (_STRATEGY, _RUN, _DENSE_STEP, _SEED),
    "Output, fidelity.json, .png and .svg": (flags.SHARED["output_dir"],),
    **{
        title: flags.TOPICS[title]
        for title in ("What they are put to", "The encoder", "Texts", "Devices")
    },
}


def main() -> int:
    """Flags -> a report, a table and a picture."""
    config = _config()
    figures.check()
    devices.apply(flags.devices(), config.output_dir / "compiled")

    from jaxval.sampling import compare  # it imports JAX

    runs = [Path(path).expanduser() for path in _RUN.value]
    pools = _pools(runs)
    checkpoints = compare.choose(config.watching.checkpoint_dir, _steps())
    report = _run(config, pools, checkpoints, _ranker(config, pools))
    write(config.output_dir, report)
    print(table(report))
    print(f"report       {config.output_dir / 'fidelity.json'}")
    print(f"picture      {config.output_dir / 'fidelity.png'}, .svg", flush=True)
    return 1 if report["left_out"] else 0


def _run(
    config: Config,
    pools: Sequence[PooledStrategy],
    checkpoints: Sequence[Checkpoint],
    ranker: Checkpoint | None,
) -> Report:
    from jaxval.sampling import compare

    def opened() -> Any:
        return devices.open_devices(flags.devices())

    return compare.run(config, pools, _SEED.value, checkpoints, ranker, opened, progress)


def _ranker(config: Config, pools: Sequence[PooledStrategy]) -> Checkpoint | None:
    """The checkpoint whose ranking the dense parts take."""
    from jaxval.sampling import dense

    strategies.check_step((pool.strategy for pool in pools), _DENSE_STEP.value)
    if _DENSE_STEP.value is None:
        return None
    return dense.pick(config.watching.checkpoint_dir, _DENSE_STEP.value)


def _config() -> Config:
    config = flags.config()
    if len(config.datasets) > 1:
        raise UserError("--dataset is repeated: fidelity compares samples of one set")
    if config.search.rerank:
        raise UserError("--rerank scores no corpus: leave it out, fidelity compares corpora")
    if not _STRATEGY.value:
        raise UserError("--strategy is not set: add one or more, as for jaxval.sample")
    return config


def _pools(runs: Sequence[Path]) -> list[PooledStrategy]:
    """Each strategy once, without the whole corpus."""
    from jaxval.sampling import compare

    for path in runs:
        if not path.is_file():
            raise UserError(f"--run={path}: there is no such file")
    pools = list(dict.fromkeys(compare.pool(text, runs) for text in _STRATEGY.value))
    unused = set(runs).difference(*(each.runs for each in pools))
    if unused:
        raise UserError(f"--run={min(unused)}: no --strategy has a run part that pools it")
    parts = [each for each in pools if not each.strategy.full]
    if not parts:
        raise UserError("--strategy=full is what the others are held against: name another")
    return parts


def _steps() -> set[int]:
    for step in _STEPS.value:
        if not step.strip().isdigit():
            raise UserError(f"--steps: {step!r} is no step: write numbers, as in 0,100,200")
    return set(map(int, _STEPS.value))


def write(folder: Path, report: Report) -> None:
    """Writes fidelity.json, .png and .svg, each replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for form in ("json", "png", "svg"):
        with replace_file(folder / f"fidelity.{form}") as partial:
            if form == "json":
                partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            else:
                figures.draw(report, partial, form)


def table(report: Report) -> str:
    """A row a strategy and a block a measure."""
    return "\n\n".join(_block(report, name) for name in report["measures"])


def _block(report: Report, name: str) -> str:
    width = max(len(row["strategy"]) for row in report["strategies"])
    head = (
        f"{name} over {len(report['steps'])} checkpoints and {report['queries']} queries"
        " [95% of resampled queries]\n"
        f"  {'strategy':<{width}} passages  tokens    time   s  tau"
        f"{'':<19}rho     best       regret{'':<18}optimism"
    )
    rows = [_line(row, name, width, report["steps"]) for row in report["strategies"]]
    return "\n".join([head, *rows])


def _line(row: Report, name: str, width: int, steps: Sequence[int]) -> str:
    found = row["agreement"][name]
    mark = "=" if found["same_best"] else "≠"
    rho = "   -" if found["rho"]["value"] is None else f"{found['rho']['value']:.3f}"
    return (
        f"  {row['strategy']:<{width}} {row['passages']:>8,} {row['share_of_tokens']:>7.1%}"
        f" {row['share_of_time']:>7.1%} {row['seconds']['total']:>5.1f}"
        f"  {_cell(found['tau']):<22} {rho:<7} {mark} {steps[found['best']]:<8}"
        f" {_cell(found['regret']):<23} {_cell(found['optimism'])}"
    )


def _cell(estimate: dict[str, float | None]) -> str:
    value, low, high = (estimate[part] for part in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    frame.run(main, _TOPICS, __doc__ or "")
