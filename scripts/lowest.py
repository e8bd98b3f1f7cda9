"""Prints pip constraints that pin each base dependency to its lowest supported version.

python scripts/lowest.py >constraints.txt

Reads pyproject.toml in the current directory. Every base dependency must be of the form
`name>=version`, with or without extras. Needs the standard library alone, because it runs
before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_LOWER_BOUND = re.compile(r"(?P<name>[\w.-]+)(\[.*\])?>=(?P<version>[\w.]+)")


def constraint(requirement: str) -> str:
    """Returns the requirement's lowest version as a constraint, `name==version`."""
    match = _LOWER_BOUND.fullmatch(requirement)
    if match is None:
        sys.exit(f"pyproject.toml: {requirement!r} is not of the form name>=version")
    return f"{match['name']}=={match['version']}"


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    print(*map(constraint, project["dependencies"]), sep="\n")
