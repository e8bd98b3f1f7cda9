"""A fidelity report as a picture. By matplotlib, which is optional."""

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

    Strategies that differ in their numbers alone share a colour and are joined by a line.

    Args:
      report: as fidelity.json holds it.
      path: where to.
      form: `png` or `svg`.

    Raises:
      UserError: matplotlib is not installed.
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
        for axes, what in ((tau, "tau"), (regret, "regret"), (optimism, "optimism")):
            _by_cost(axes, what, name, kinds, colours)
        figure.legend(*tau.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        date = {"Date": None} if form == "svg" else None
        figure.savefig(path, format=form, dpi=110, metadata=date)


def _kinds(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Strategies that differ in their numbers alone, the cheapest first."""
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
            strength = 0.3 + 0.7 * number / len(rows)
            axes.plot(steps, row["means"][name], color=colours[kind], alpha=strength, lw=1)
    axes.plot(steps, report["strategies"][0]["means"][name], "k-o", ms=4, lw=2, label="full")
    axes.set(title=f"{name} by step (deeper is stronger)", xlabel="step", ylabel=name)
    axes.legend()
    axes.grid(alpha=0.3)


def _by_cost(
    axes: Any,
    what: str,
    name: str,
    kinds: Mapping[str, Sequence[Any]],
    colours: Mapping[str, str],
) -> None:
    """Values and intervals over the share of tokens; filled where the best is the same."""
    for kind, rows in kinds.items():
        found = [row["agreement"][name] for row in rows]
        known = [
            (100 * row["share_of_tokens"], each[what], each["same_best"])
            for row, each in zip(rows, found, strict=True)
            if each[what]["value"] is not None
        ]
        costs = [cost for cost, _, _ in known]
        values = [each["value"] for _, each, _ in known]
        axes.plot(costs, values, color=colours[kind], lw=1, marker="o", mfc="w", label=kind)
        for cost, each, same in known:
            axes.plot([cost] * 2, [each["low"], each["high"]], color=colours[kind], alpha=0.35)
            if same:
                axes.plot(cost, each["value"], "o", color=colours[kind])
    titles = {
        "tau": "Kendall's tau-b with the whole corpus",
        "regret": "regret of the pick",
        "optimism": "optimism, mean over the checkpoints",
    }
    axes.axvline(5, color="grey", ls=":", lw=1)
    axes.set(title=f"{titles[what]} ({name})", xlabel="% of the corpus's tokens", ylabel=what)
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
