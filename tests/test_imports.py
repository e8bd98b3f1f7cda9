"""The rooms stand above each other; who imports upwards fails here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxval

PACKAGE = Path(jaxval.__file__).parent

# From below to above: a room may import those of lower layers.
LAYERS = (
    ("records", "errors", "atomic", "canonical", "signals"),
    ("config",),
    ("metrics", "checkpoints", "corpus", "encoders"),
    ("evaluation", "results"),
    ("api", "run", "sampling", "check"),
    ("cli",),
    ("main", "convert", "sample", "fidelity", "demo"),
)
# And these of its own layer.
ARROWS = {("signals", "atomic")}

APPS = LAYERS[-1]
# Rooms that few may know.
KNOWN_TO = {
    "cli": APPS,
    "config": ("evaluation", "api", "run", "sampling", "check", "cli", *APPS),
}

MODULES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"  # it is no room; see below
]


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source):
    """The rooms that a module imports, wherever in it and whenever, with the line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "jaxval" and rest:
                yield rest.partition(".")[0], node.lineno


def layer(room):
    found = [number for number, rooms in enumerate(LAYERS) if room in rooms]
    assert len(found) == 1, f"{room} stands in no layer: say in LAYERS which is its own"
    return found[0]


def allowed(room, other):
    if other == room:
        return True
    if room not in KNOWN_TO.get(other, (room,)):
        return False
    return layer(other) < layer(room) or (room, other) in ARROWS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_arrow_goes_the_wrong_way(path):
    room = room_of(path)
    layer(room)  # also of those that import nothing
    wrong = [
        f"{path}:{line}: {room} may not import {other}"
        for other, line in imported(path.read_text())
        if not allowed(room, other)
    ]
    assert wrong == []


def test_the_rules_by_hand():
    assert allowed("run", "evaluation")
    assert allowed("evaluation", "corpus")
    assert allowed("main", "cli")
    assert not allowed("corpus", "evaluation")
    assert not allowed("metrics", "checkpoints")
    assert not allowed("evaluation", "results")
    assert not allowed("results", "config")
    assert not allowed("run", "cli")
    assert not allowed("records", "errors")


def test_imports_are_found_in_every_spelling():
    source = """
import jaxval.run.session, os
from jaxval import atomic as whole, config
from jaxval.corpus.token_store import TokenStore
if TYPE_CHECKING:
    from jaxval.records import Text
def late():
    import jaxval.results.ledger
"""
    found = sorted(room for room, _ in imported(source))
    assert found == ["atomic", "config", "corpus", "records", "results", "run"]
    assert {"corpus", "records"} <= {
        room for room, _ in imported((PACKAGE / "evaluation" / "encode.py").read_text())
    }


SLOW = ("jax", "jaxlib", "flax", "orbax", "transformers", "faiss")


@pytest.mark.parametrize(
    "module",
    [
        "jaxval.checkpoints.watcher",
        "jaxval.cli.flags",
        "jaxval.main",
        "jaxval.sample",
        "jaxval.fidelity",
        "jaxval.cli.devices",
    ],
)
def test_jax_is_not_imported_before_the_watcher_runs(module):
    script = f"import sys, {module}; print(*(name for name in {SLOW!r} if name in sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "\n"
