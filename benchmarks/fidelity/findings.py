"""Prints the tables of README.md, from fidelity.json and confirm.json.

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
"""Index of a confirmed checkpoint -> its values on the sample and on the whole corpus."""


def strategies(report: dict[str, Any], name: str) -> Iterator[str]:
    """Yields a table with one row per strategy: cost, agreement, regret and optimism.

    Args:
      report: Content of fidelity.json.
      name: Name of the measure.
    """
    whole = np.array(report["strategies"][0]["means"][name])
    heads = (
        "passages",
        "tokens",
        "time",
        "tau-b",
        "rho",
        "best step",
        "regret",
        "regret of best 2",
    )
    yield _line([name, *heads])
    yield "|--|" + "--|" * len(heads)
    for row in report["strategies"]:
        part, agreement = np.array(row["means"][name]), row["agreement"][name]
        order = np.argsort(-part, kind="stable")
        yield _line(
            [
                f"`{row['strategy']}`",
                f"{row['passages']:,}",
                f"{row['share_of_tokens']:.1%}",
                f"{row['share_of_time']:.1%}",
                _interval(agreement["tau"], 2),
                f"{agreement['rho']['value']:.2f}",
                str(report["steps"][agreement["best"]]),
                _interval(agreement["regret"], 4),
                *(f"{whole.max() - whole[order[:k]].max():.4f}" for k in BEST),
                f"{agreement['optimism']['value']:+.4f}",
            ]
        )


def checkpoints(report: dict[str, Any]) -> Iterator[str]:
    """Yields a table of the values on the whole corpus."""
    names = report["measures"]
    yield _line(["step", *map(str, report["steps"])])
    yield "|--|" + "--|" * len(report["steps"])
    for name in names:
        values = report["strategies"][0]["means"][name]
        yield _line([name, *(f"{value:.3f}" for value in values)])


def uncorrected(known: Known, number: int, sampled: float) -> float:
    """Returns the value on the sample."""
    return sampled


def by_the_nearest(known: Known, number: int, sampled: float) -> float:
    """Subtracts the excess of the nearest confirmed checkpoint, as --confirm=best does."""
    nearest = min(known, key=lambda other: (abs(other - number), other))
    part, whole = known[nearest]
    return sampled - (part - whole)


def by_the_mean(known: Known, number: int, sampled: float) -> float:
    """Subtracts the mean excess of the confirmed checkpoints."""
    part, whole = np.array(list(known.values())).T
    return sampled - float((part - whole).mean())


def by_a_line(known: Known, number: int, sampled: float) -> float:
    """Predicts the value from a line fitted to the confirmed checkpoints by least squares."""
    slope, start = np.polyfit(*np.array(list(known.values())).T, 1)
    return float(start + slope * sampled)


RULES: dict[str, Callable[[Known, int, float], float]] = {
    "uncorrected": uncorrected,
    "nearest": by_the_nearest,
    "mean": by_the_mean,
    "line": by_a_line,
}
"""Name of a rule -> the rule. Its arguments are the confirmed checkpoints, the index of another
one, and the value of that one on the sample; it estimates the value on the whole corpus."""


def errors(whole: np.ndarray, part: np.ndarray, known: Sequence[int], rule: Any) -> np.ndarray:
    """Returns estimated minus true values of the checkpoints that are not confirmed.

    Args:
      whole: Values on the whole corpus, [checkpoints].
      part: Values on the sample, [checkpoints].
      known: Indices of the confirmed checkpoints.
      rule: One of RULES.
    """
    pairs = {number: (part[number], whole[number]) for number in known}
    others = [number for number in range(len(whole)) if number not in pairs]
    return np.array([rule(pairs, number, part[number]) - whole[number] for number in others])


def corrections(report: dict[str, Any], chosen: dict[str, Any], name: str) -> Iterator[str]:
    """Yields a table with one row per strategy: mean and largest absolute error of each rule.

    Args:
      report: Content of fidelity.json.
      chosen: Content of confirm.json.
      name: Name of the measure.
    """
    whole, steps = np.array(report["strategies"][0]["means"][name]), report["steps"]
    out = {steps.index(step) for step in chosen["screened"]["newest"]}
    plans = {
        "every fourth confirmed": list(range(0, len(steps), 4)),
        "all but screened-out confirmed": [n for n in range(len(steps)) if n not in out],
    }
    yield _line([name, *(f"{plan}: {rule}" for plan in plans for rule in RULES)])
    yield "|--|" + "--|" * (len(plans) * len(RULES))
    for row in report["strategies"][1:]:
        part = np.array(row["means"][name])
        absolute = [
            np.abs(errors(whole, part, known, rule))
            for known in plans.values()
            for rule in RULES.values()
        ]
        cells = [f"{values.mean():.4f} / {values.max():.4f}" for values in absolute]
        yield _line([f"`{row['strategy']}`", *cells])


def confirmed(report: dict[str, Any]) -> Iterator[str]:
    """Yields a table with one row per checkpoint: the input and the decision of --confirm=best.

    Args:
      report: Content of confirm.json.
    """
    heads = [
        "sample",
        "95% interval",
        "best so far",
        "p",
        "whole",
        "screened out with --order=",
    ]
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
                ", ".join(
                    order for order, steps in report["screened"].items() if row["step"] in steps
                ),
            ]
        )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _interval(estimate: dict[str, float], digits: int) -> str:
    low, high = (f"{estimate[end]:.{digits}f}" for end in ("low", "high"))
    return f"{estimate['value']:.{digits}f} [{low}, {high}]"


def main() -> None:
    """Prints all tables."""
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
