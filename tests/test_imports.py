"""Modules import only from layers below, and importing a command does not import JAX."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxval

PACKAGE = Path(jaxval.__file__).parent

# From the lowest layer to the highest. A module imports only from lower layers, or from its
# own package.
LAYERS = (
    ("records", "errors", "atomic", "canonical", "signals"),
    ("config",),
    ("metrics", "checkpoints", "corpus", "encoders"),
    ("evaluation", "results"),
    ("api", "run", "sampling", "check"),
    ("cli",),
    ("main", "convert", "sample", "fidelity", "demo"),
)
# Exceptions within a layer.
WITHIN_LAYER = {("signals", "atomic")}

DOORS = ("main", "convert", "sample", "fidelity")
# Packages that only some may import.
IMPORTED_BY = {
    "cli": DOORS,
    "config": ("evaluation", "api", "run", "sampling", "check", "cli", *DOORS),
}
DOOR_LINES = 60

MODULES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"  # it imports public names when they are first used
]


def package_of(path):
    """The name of a module's package within jaxval, or of the module itself."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(source):
    """Yields the names that a module imports, anywhere in it, with their lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write an absolute import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def imported_packages(source):
    """Yields the packages of jaxval that a module imports, with the lines."""
    for name, line in imports(source):
        top, _, rest = name.partition(".")
        if top == "jaxval" and rest:
            yield rest.partition(".")[0], line


def layer(package):
    layers = [number for number, packages in enumerate(LAYERS) if package in packages]
    assert len(layers) == 1, f"add {package} to one of LAYERS"
    return layers[0]


def may_import(package, other):
    if other == package:
        return True
    if package not in IMPORTED_BY.get(other, (package,)):
        return False
    return layer(other) < layer(package) or (package, other) in WITHIN_LAYER


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_lower_layers(path):
    package = package_of(path)
    layer(package)  # fails if the package is in no layer, also if it imports nothing
    wrong = [
        f"{path}:{line}: {package} may not import {other}"
        for other, line in imported_packages(path.read_text())
        if not may_import(package, other)
    ]
    assert wrong == []


def test_examples_of_the_rules():
    assert may_import("run", "evaluation")
    assert may_import("evaluation", "corpus")
    assert may_import("main", "cli")
    assert not may_import("corpus", "evaluation")
    assert not may_import("metrics", "checkpoints")
    assert not may_import("evaluation", "results")
    assert not may_import("results", "config")
    assert not may_import("run", "cli")
    assert not may_import("demo", "cli")
    assert not may_import("records", "errors")


def test_imports_of_every_form_are_found():
    source = """
import jaxval.run.session, os
from jaxval import atomic as whole, config
from jaxval.corpus.token_store import TokenStore
if TYPE_CHECKING:
    from jaxval.records import Text
def late():
    import jaxval.results.ledger
"""
    packages = sorted(package for package, _ in imported_packages(source))
    assert packages == ["atomic", "config", "corpus", "records", "results", "run"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_flags_are_defined_only_in_cli_and_the_demo(path):
    of_absl = [name for name, _ in imports(path.read_text()) if name.startswith("absl")]
    assert of_absl == [] or package_of(path) in ("cli", "demo")


@pytest.mark.parametrize("door", DOORS)
def test_door_is_a_page_with_one_function_for_the_console_script(door):
    source = (PACKAGE / f"{door}.py").read_text()
    assert len(source.splitlines()) <= DOOR_LINES
    functions = {node.name: node for node in ast.parse(source).body if hasattr(node, "args")}
    assert not functions["app"].args.args  # a console script calls it without arguments
    assert 'if __name__ == "__main__":\n    app()\n' in source


SLOW = ("jax", "jaxlib", "flax", "orbax", "transformers", "faiss")


@pytest.mark.parametrize(
    "modules",
    [
        "jaxval.checkpoints.watcher",
        "jaxval.main, jaxval.sample, jaxval.fidelity, jaxval.convert",
    ],
)
def test_jax_is_not_imported_before_the_watcher_runs(modules):
    script = (
        f"import sys, {modules}; print(*(name for name in {SLOW!r} if name in sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "\n"
