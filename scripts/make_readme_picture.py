"""Draws the README's picture from a run of the demo.

python -m jaxval.demo
python -m jaxval.main --flagfile=jaxval/demo/demo.flags > table.txt
python scripts/make_readme_picture.py runs/demo/jaxval table.txt docs/images

The second command validates nothing: it prints the table of what the ledger holds. The third
writes demo.svg, a curve with intervals above that table, and demo.txt, the table alone.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

SHOWN = {"RR@10": "#3949ab", "nDCG@10": "#90a4ae"}
"""The measures that are drawn, and their colours. The first decides which is best."""

BEST = "#c2410c"
_SIZE = (8.4, 6.1)
_LAST = "best on "
_PATH = re.compile(r"\s+\(/.*\)$")

Row = dict[str, Any]


def read(output_dir: Path) -> list[Row]:
    """Returns the validations of a run, in the order in which they were written."""
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def table(printed: str) -> list[str]:
    """Returns the lines of the table, up to the one that names the best, without its path."""
    lines = printed.splitlines()
    last = next(number for number, line in enumerate(lines) if line.startswith(_LAST))
    return [_PATH.sub("", line) for line in lines[: last + 1]]


def draw(rows: Sequence[Row], lines: Sequence[str], path: Path) -> None:
    """Writes the picture, as SVG."""
    spines = {"axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context({"svg.hashsalt": "jaxval", "font.size": 10, **spines}):
        figure, (curves, text) = pyplot.subplots(
            2, 1, figsize=_SIZE, height_ratios=(3.4, 2.4), layout="constrained"
        )
        for name, colour in SHOWN.items():
            _curve(curves, rows, name, colour)
        _mark_best(curves, rows, next(iter(SHOWN)))
        curves.set(xlabel="training step", ylabel="mean and 95% interval", ylim=(0, None))
        curves.set_title("Retrieval quality of each checkpoint", loc="left")
        curves.legend(loc="upper left", frameon=False)
        curves.grid(alpha=0.25)
        text.axis("off")
        style = {"family": "monospace", "size": 7.6, "va": "top", "linespacing": 1.35}
        text.text(0, 1, "\n".join(lines), **style)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _curve(axes: Any, rows: Sequence[Row], name: str, colour: str) -> None:
    steps = [row["step"] for row in rows]
    means = [row["measures"][name] for row in rows]
    low, high = zip(*(row["intervals"][name] for row in rows), strict=True)
    axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(steps, means, "-o", color=colour, ms=4, label=name)


def _mark_best(axes: Any, rows: Sequence[Row], measure: str) -> None:
    best = max(rows, key=lambda row: row["measures"][measure])
    point = best["step"], best["measures"][measure]
    axes.plot(*point, "o", ms=11, mfc="none", mec=BEST, mew=2)
    below = {"xytext": (0, -28), "textcoords": "offset points", "ha": "center"}
    axes.annotate(f"best: step {best['step']}", point, color=BEST, **below)


def main(output_dir: str, printed: str, folder: str) -> None:
    """Writes demo.svg and demo.txt."""
    lines = table(Path(printed).read_text(encoding="utf-8"))
    draw(read(Path(output_dir)), lines, Path(folder, "demo.svg"))
    Path(folder, "demo.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
