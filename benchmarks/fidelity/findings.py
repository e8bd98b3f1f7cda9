"""The tables of README.md, from fidelity.json and confirm.json.

python -m benchmarks.fidelity.findings
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
BEST = (2, 3)

Known = dict[int, tuple[float, float]]
"""Number of a checkpoint -> its values on the sample and on the whole corpus."""


def strategies(report: dict[str, Any], name: str) -> Iterator[str]:
    """A row a strategy: cost, order, regret of its best k, and how far off its values are."""
    whole = np.array(report["strategies"][0]["means"][name])
    heads = ("passages", "tokens", "time", "tau-b", "rho", "picks", "regret", "of its best 2")
    yield _line([name, *heads, "3", "optimism"])
    yield "|--|" + "--|" * (len(heads) + 2)
    for row in report["strategies"]:
        part, found = np.array(row["means"][name]), row["agreement"][name]
        order = np.argsort(-part, kind="stable")
        yield _line(
            [
                f"`{row['strategy']}`",
                f"{row['passages']:,}",
                f"{row['share_of_tokens']:.1%}",
                f"{row['share_of_time']:.1%}",
                _interval(found["tau"], 2),
                f"{found['rho']['value']:.2f}",
                str(report["steps"][found["best"]]),
                _interval(found["regret"], 4),
                *(f"{whole.max() - whole[order[:k]].max():.4f}" for k in BEST),
                f"{found['optimism']['value']:+.4f}",
            ]
        )


def checkpoints(report: dict[str, Any]) -> Iterator[str]:
    """The values on the whole corpus."""
    names = report["measures"]
    yield _line(["step", *map(str, report["steps"])])
    yield "|--|" + "--|" * len(report["steps"])
    for name in names:
        values = report["strategies"][0]["means"][name]
        yield _line([name, *(f"{value:.3f}" for value in values)])


def uncorrected(known: Known, number: int, sampled: float) -> float:
    return sampled


def by_the_nearest(known: Known, number: int, sampled: float) -> float:
    """What --confirm=best prints: less what the nearest one that is known is too high."""
    nearest = min(known, key=lambda other: (abs(other - number), other))
    part, whole = known[nearest]
    return sampled - (part - whole)


def by_the_mean(known: Known, number: int, sampled: float) -> float:
    part, whole = np.array(list(known.values())).T
    return sampled - float((part - whole).mean())


def by_a_line(known: Known, number: int, sampled: float) -> float:
    """Least squares over all that are known."""
    slope, start = np.polyfit(*np.array(list(known.values())).T, 1)
    return float(start + slope * sampled)


RULES: dict[str, Callable[[Known, int, float], float]] = {
    "uncorrected": uncorrected,
    "by the nearest": by_the_nearest,
    "by the mean": by_the_mean,
    "by a line": by_a_line,
}


def errors(whole: np.ndarray, part: np.ndarray, known: Sequence[int], rule: Any) -> np.ndarray:
    """Estimated minus true of every checkpoint that is not put to the whole corpus."""
    pairs = {each: (part[each], whole[each]) for each in known}
    others = [number for number in range(len(whole)) if number not in pairs]
    return np.array([rule(pairs, each, part[each]) - whole[each] for each in others])


def corrections(report: dict[str, Any], chosen: dict[str, Any], name: str) -> Iterator[str]:
    """A row a strategy: by each rule, the mean and the largest absolute error."""
    whole, steps = np.array(report["strategies"][0]["means"][name]), report["steps"]
    out = {steps.index(step) for step in chosen["screened"]["newest"]}
    plans = {
        "every fourth known": list(range(0, len(steps), 4)),
        "all known but those screened out": [n for n in range(len(steps)) if n not in out],
    }
    yield _line([name, *(f"{plan}: {rule}" for plan in plans for rule in RULES)])
    yield "|--|" + "--|" * (len(plans) * len(RULES))
    for row in report["strategies"][1:]:
        part = np.array(row["means"][name])
        found = [
            np.abs(errors(whole, part, known, rule))
            for known in plans.values()
            for rule in RULES.values()
        ]
        cells = [f"{each.mean():.4f} / {each.max():.4f}" for each in found]
        yield _line([f"`{row['strategy']}`", *cells])


def confirmed(report: dict[str, Any]) -> Iterator[str]:
    """A row a checkpoint: what --confirm=best goes by, and whom it screens out."""
    heads = ["sample", "95%", "best so far", "p", "whole", "screened out with --order="]
    yield _line([f"step, {report['measure']}", *heads])
    yield "|--|" + "--|" * len(heads)
    for row in report["rows"]:
        p_value = row["p_value"]
        yield _line(
            [
                str(row["step"]),
                f"{row['sample']:.4f}",
                "{:.3f} to {:.3f}".format(*row["interval"]),
                "" if row["against"] is None else str(row["against"]),
                "" if p_value is None else f"{p_value:.3f}",
                f"{row['whole']:.4f}",
                ", ".join(o for o, steps in report["screened"].items() if row["step"] in steps),
            ]
        )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _interval(estimate: dict[str, float], digits: int) -> str:
    low, high = (f"{estimate[end]:.{digits}f}" for end in ("low", "high"))
    return f"{estimate['value']:.{digits}f} [{low}, {high}]"


def main() -> None:
    report, chosen = (
        json.loads((HERE / f"{name}.json").read_text()) for name in ("fidelity", "confirm")
    )
    tables = [checkpoints(report), confirmed(chosen)]
    for name in report["measures"]:
        tables += [strategies(report, name), corrections(report, chosen, name)]
    for table in tables:
        print(*table, sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
