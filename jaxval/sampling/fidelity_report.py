"""Files and table of a fidelity report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxval.sampling import figures

Report = dict[str, Any]
"""The content of fidelity.json: see the README."""


def write(folder: Path, report: Report) -> None:
    """Writes fidelity.json, .png and .svg, each replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for form in ("json", "png", "svg"):
        whole = folder / f"fidelity.{form}"
        partial = whole.with_name(f".{whole.name}.partial")
        if form == "json":
            partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        else:
            figures.draw(report, partial, form)
        partial.replace(whole)


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
