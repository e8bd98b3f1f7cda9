"""How a benchmark reports: tables for the reader, JSON files for the record."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

_VERSIONS = """
import importlib.metadata, json, platform, sys
versions = {name: importlib.metadata.version(name) for name in sys.argv[1:]}
print(json.dumps({"python": platform.python_version(), **versions}))
"""


def machine(*packages: str) -> dict[str, Any]:
    """Where and when this runs.

    Args:
      packages: whose versions are told besides those of jax and jaxlib, e.g. "torch".
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "gpu": _gpu(),
        **versions("jax", "jaxlib", *packages),
    }


def versions(*packages: str, python: str = sys.executable) -> dict[str, str]:
    """Versions of an interpreter and of packages; ends the process if one is not installed."""
    command = [python, "-c", _VERSIONS, *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python}: {done.stderr.splitlines()[-1]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True)
    return ", ".join(found.stdout.split("\n")).strip(", ") or None


def median(values: Sequence[float]) -> float:
    """The middle one, or the mean of the two in the middle."""
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, and if there are several all values: `2.0 (1.9 2.0 2.4)`."""
    middle = f"{median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({' '.join(f'{value:,.{digits}f}' for value in values)})"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text in aligned columns, the first to the left and the others to the right."""
    lines = [headers, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_align(line, widths) for line in lines)


def _align(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(line, widths, strict=True)
    cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "  ".join(cells).rstrip()


def write(name: str, result: Mapping[str, Any], *packages: str) -> Path:
    """Writes the result, with the machine, to results/<name>.json, and prints where.

    Args:
      name: the benchmark's.
      result: anything that JSON can hold.
      packages: as in `machine`.
    """
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    whole = {"machine": machine(*packages), **result}
    path.write_text(json.dumps(whole, indent=2) + "\n")
    print(f"wrote {path}")
    return path
