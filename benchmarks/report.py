"""Output of the benchmarks: printed tables, and JSON files in benchmarks/results."""

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
    """Returns a description of the machine, the date, and versions of packages.

    Args:
      packages: Packages to list in addition to jax and jaxlib, e.g. "torch".
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
    """Returns the versions of an interpreter and of its packages.

    Ends the process with a message if a package is not installed.

    Args:
      packages: Names of the packages.
      python: Path of the interpreter.
    """
    command = [python, "-c", _VERSIONS, *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python}: {done.stderr.splitlines()[-1]}")
    numbers: dict[str, str] = json.loads(done.stdout)
    return numbers


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True)
    return ", ".join(listed.stdout.split("\n")).strip(", ") or None


def median(values: Sequence[float]) -> float:
    """Returns the median."""
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Returns the median, and all values if there are several: `2.0 (1.9 2.0 2.4)`."""
    middle = f"{median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({' '.join(f'{value:,.{digits}f}' for value in values)})"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as plain text. The first column is aligned left, the others right."""
    lines = [headers, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_align(line, widths) for line in lines)


def _align(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(line, widths, strict=True)
    cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "  ".join(cells).rstrip()


def write(name: str, result: Mapping[str, Any], *packages: str) -> Path:
    """Writes a result to results/<name>.json, with a description of the machine.

    Prints the path.

    Args:
      name: Name of the benchmark.
      result: The result, of types that JSON can hold.
      packages: Packages whose versions are recorded, as in `machine`.

    Returns:
      The path of the file.
    """
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    whole = {"machine": machine(*packages), **result}
    path.write_text(json.dumps(whole, indent=2) + "\n")
    print(f"wrote {path}")
    return path
