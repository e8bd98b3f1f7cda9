"""Files and table of a fidelity report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxval.atomic import replace_file
from jaxval.sampling import figures

Report = dict[str, Any]
"""The content of fidelity.json, as `compare.compare` returns it."""

_UNLIMITED = 100_000  # columns


def write(folder: Path, report: Report) -> None:
    """Writes fidelity.json, .png and .svg. Each file is replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for form in ("json", "png", "svg"):
        with replace_file(folder / f"fidelity.{form}") as partial:
            if form == "json":
                partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            else:
                figures.draw(report, partial, form)


def print_table(report: Report) -> None:
    """Prints a table for each measure, with a row for each strategy. No row is cropped."""
    console = Console(width=_UNLIMITED, markup=False, highlight=False, emoji=False)
    over = f"over {len(report['steps'])} checkpoints and {report['queries']} queries"
    for measure in report["measures"]:
        console.print(f"{measure} {over} [95% of resampled queries]", style="bold")
        console.print(_table(report, measure))
        console.print()


def _table(report: Report, measure: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column("strategy")
    for name in ("passages", "tokens", "time", "s"):
        table.add_column(name, justify="right")
    for name in ("tau", "rho", "best", "regret", "optimism"):
        table.add_column(name)
    for row in report["strategies"]:
        table.add_row(*_cells(row, measure, report["steps"]))
    return table


def _cells(row: Report, measure: str, steps: Sequence[int]) -> tuple[str, ...]:
    agreement = row["agreement"][measure]
    rho = agreement["rho"]["value"]
    same_best = "=" if agreement["same_best"] else "≠"
    return (
        row["strategy"],
        f"{row['passages']:,}",
        f"{row['share_of_tokens']:.1%}",
        f"{row['share_of_time']:.1%}",
        f"{row['seconds']['total']:.1f}",
        _interval(agreement["tau"]),
        "-" if rho is None else f"{rho:.3f}",
        f"{same_best} {steps[agreement['best']]}",
        _interval(agreement["regret"]),
        _interval(agreement["optimism"]),
    )


def _interval(estimate: Mapping[str, float | None]) -> str:
    value, low, high = (estimate[part] for part in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
