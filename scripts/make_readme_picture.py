"""Draws the README's picture from the output of a run, such as that of `python -m jaxval.demo`.

python scripts/make_readme_picture.py runs/demo/jaxval docs/images

Reads metrics.jsonl and writes demo.svg, a curve with intervals above the table that jaxval prints,
and demo.txt, the table alone, which the tutorial includes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

SIGNIFICANT = 0.05
SHOWN = ("RR@10", "nDCG@10")
BEST, LINE = "#c2410c", "#3949ab"

Row = dict[str, Any]


def read(output_dir: Path) -> list[Row]:
    """Returns the validations of a run, in the order in which they were written."""
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def table(rows: Sequence[Row], measure: str) -> list[str]:
    """Returns the lines of the table: a header, a row for each checkpoint, and the best one."""
    names = list(rows[0]["measures"])
    lines = [
        "    step  " + "".join(f"{name:<18}" for name in names) + "passages/s  seconds".rjust(18)
    ]
    best: Row | None = None
    for row in rows:
        leads = best is None or row["measures"][measure] > best["measures"][measure]
        cells = "".join(f"{_cell(row, best, name):<18}" for name in names)
        seconds = sum(row["seconds"].values())
        star = "*" if leads else " "
        lines.append(
            f"{row['step']:>8}{star} {cells}{row['passages_per_second']:>10,.0f}{seconds:>8.1f}"
        )
        best = row if leads else best
    assert best is not None
    low, high = best["intervals"][measure]
    value = best["measures"][measure]
    end = f"best: step {best['step']}, {measure} {value:.4f} [{low:.4f}, {high:.4f}]"
    return [*lines, "", end, "* best so far   † significantly different from it (p < 0.05)"]


def _cell(row: Row, best: Row | None, name: str) -> str:
    value = row["measures"][name]
    if best is None:
        return f"{value:.4f}"
    mark = "†" if row["p_values"].get(name, 1.0) < SIGNIFICANT else ""
    return f"{value:.4f} {value - best['measures'][name]:+.4f}{mark}"


def draw(rows: Sequence[Row], lines: Sequence[str], path: Path) -> None:
    """Writes the picture as SVG."""
    settings = {"svg.hashsalt": "jaxval", "font.size": 10, "axes.spines.top": False}
    with pyplot.rc_context(settings | {"axes.spines.right": False}):
        figure, (curves, text) = pyplot.subplots(
            2, 1, figsize=(8.4, 6.4), height_ratios=(3, 2.6), layout="constrained"
        )
        for name, colour in zip(SHOWN, (LINE, "#90a4ae"), strict=True):
            _curve(curves, rows, name, colour)
        measure = SHOWN[0]
        best = max(rows, key=lambda row: row["measures"][measure])
        curves.plot(best["step"], best["measures"][measure], "o", ms=11, mfc="none", mec=BEST, mew=2)
        curves.annotate(
            f"best: step {best['step']}",
            (best["step"], best["measures"][measure]),
            xytext=(0, -28),
            textcoords="offset points",
            ha="center",
            color=BEST,
        )
        curves.set(xlabel="training step", ylabel="mean and 95% interval", ylim=(0, None))
        curves.set_title("Retrieval quality of each checkpoint, while the training runs", loc="left")
        curves.legend(loc="upper left", frameon=False)
        curves.grid(alpha=0.25)
        text.axis("off")
        text.text(0, 1, "\n".join(lines), family="monospace", size=8.2, va="top", linespacing=1.35)
        figure.savefig(path, metadata={"Date": None})


def _curve(axes: Any, rows: Sequence[Row], name: str, colour: str) -> None:
    steps = [row["step"] for row in rows]
    low, high = zip(*(row["intervals"][name] for row in rows), strict=True)
    axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(steps, [row["measures"][name] for row in rows], "-o", color=colour, ms=4, label=name)


def main(output_dir: str, folder: str) -> None:
    """Writes demo.svg and demo.txt."""
    rows = read(Path(output_dir))
    lines = table(rows, SHOWN[0])
    draw(rows, lines, Path(folder, "demo.svg"))
    Path(folder, "demo.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
