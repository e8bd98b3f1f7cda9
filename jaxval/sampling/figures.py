"""Draws a fidelity report as a picture. Needs the optional package matplotlib."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxval.errors import UserError

_SIZE = (15.0, 9.0)
_NUMBER = re.compile(r"=\d+")


def check() -> None:
    """Raises UserError unless matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("pictures need the package matplotlib: pip install 'jaxval[fidelity]'")


def draw(report: Mapping[str, Any], path: Path, form: str) -> None:
    """Draws the first measure: each strategy's curve over the steps, and fidelity by cost.

    Strategies that differ only in their numbers share a colour and are joined by a line.

    Args:
      report: The content of fidelity.json.
      path: The file to write.
      form: `png` or `svg`.

    Raises:
      UserError: Matplotlib is not installed.
    """
    check()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name = report["measures"][0]
    kinds = _kinds(report["strategies"][1:])
    colours = {kind: f"C{number % 10}" for number, kind in enumerate(kinds)}
    with matplotlib.rc_context({"svg.hashsalt": "jaxval", "svg.fonttype": "none"}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        curves, tau, regret, optimism = figure.subplots(2, 2).flat
        _curves(curves, report, name, kinds, colours)
        panels = {"tau": tau, "regret": regret, "optimism": optimism}
        for statistic, axes in panels.items():
            _by_cost(axes, statistic, name, kinds, colours)
        figure.legend(*tau.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        date = {"Date": None} if form == "svg" else None
        figure.savefig(path, format=form, dpi=110, metadata=date)


def _kinds(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Groups strategies that differ only in their numbers, the cheapest first."""
    kinds: dict[str, list[Any]] = {}
    for row in sorted(rows, key=lambda row: row["share_of_tokens"]):
        kinds.setdefault(_NUMBER.sub("", row["strategy"]), []).append(row)
    return kinds


def _curves(
    axes: Any,
    report: Mapping[str, Any],
    name: str,
    kinds: Mapping[str, Sequence[Any]],
    colours: Mapping[str, str],
) -> None:
    steps = report["steps"]
    for kind, rows in kinds.items():
        for number, row in enumerate(rows, start=1):
            alpha = 0.3 + 0.7 * number / len(rows)
            axes.plot(steps, row["means"][name], color=colours[kind], alpha=alpha, lw=1)
    axes.plot(steps, report["strategies"][0]["means"][name], "k-o", ms=4, lw=2, label="full")
    axes.set(title=f"{name} by step (deeper is stronger)", xlabel="step", ylabel=name)
    axes.legend()
    axes.grid(alpha=0.3)


def _by_cost(
    axes: Any,
    statistic: str,
    name: str,
    kinds: Mapping[str, Sequence[Any]],
    colours: Mapping[str, str],
) -> None:
    """Draws values and intervals by the share of tokens.

    Circles are filled where the sample and the whole corpus have the same best checkpoint.
    """
    for kind, rows in kinds.items():
        agreements = [row["agreement"][name] for row in rows]
        known = [
            (100 * row["share_of_tokens"], agreement[statistic], agreement["same_best"])
            for row, agreement in zip(rows, agreements, strict=True)
            if agreement[statistic]["value"] is not None
        ]
        costs = [cost for cost, _, _ in known]
        values = [estimate["value"] for _, estimate, _ in known]
        colour = colours[kind]
        axes.plot(costs, values, color=colour, lw=1, marker="o", mfc="w", label=kind)
        for cost, estimate, same_best in known:
            interval = [estimate["low"], estimate["high"]]
            axes.plot([cost] * 2, interval, color=colour, alpha=0.35)
            if same_best:
                axes.plot(cost, estimate["value"], "o", color=colour)
    titles = {
        "tau": "Kendall's tau-b with the whole corpus",
        "regret": "regret of the pick",
        "optimism": "optimism, mean over the checkpoints",
    }
    axes.axvline(5, color="grey", ls=":", lw=1)
    title = f"{titles[statistic]} ({name})"
    axes.set(title=title, xlabel="% of the corpus's tokens", ylabel=statistic)
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
