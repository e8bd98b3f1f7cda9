"""What pyproject.toml declares, against what the code imports and what a wheel holds."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
RUNTIME_EXTRAS = EXTRAS.keys() - {"test", "lint", "docs"}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def imported_modules(path: Path) -> set[str]:
    """Returns the top-level modules that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module)
    return {module.partition(".")[0] for module in modules}


@pytest.fixture(scope="module")
def distributions() -> dict[str, set[str]]:
    """Returns the installed distributions of each third-party module that jaxval imports."""
    paths = list((ROOT / "jaxval").rglob("*.py"))
    modules = set().union(*map(imported_modules, paths)) - sys.stdlib_module_names - {"jaxval"}
    installed = packages_distributions()
    return {module: set(map(canonicalize_name, installed[module])) for module in modules}


def test_every_imported_module_is_declared(distributions):
    extras = [line for extra in RUNTIME_EXTRAS for line in EXTRAS[extra]]
    declared = names(PROJECT["dependencies"] + extras)
    assert {"jax", "faiss", "optax"} <= distributions.keys()
    undeclared = {module for module, dists in distributions.items() if not dists & declared}
    assert not undeclared


def test_every_base_dependency_is_imported(distributions):
    unused = names(PROJECT["dependencies"]).difference(*distributions.values())
    assert not unused


def test_requirements_txt_is_the_cuda_extra_with_the_base_dependencies():
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    listed = [line for line in lines if not line.startswith("#")]
    assert sorted(listed) == sorted(PROJECT["dependencies"] + EXTRAS["cuda12"])


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_no_extra_but_cpu_brings_faiss_cpu(extra):
    # faiss-cpu and faiss-gpu are the same module.
    assert ("faiss-cpu" in names(EXTRAS[extra])) == (extra == "cpu")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Builds a wheel from a copy of the sources, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "jaxval", source / "jaxval", ignore=shutil.ignore_patterns("*.pyc"))
    (source / "tests").mkdir()
    (source / "tests" / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", f"--wheel-dir={folder}", str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("jaxval-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_only_the_package_and_its_data(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"jaxval"}
    assert {"jaxval/py.typed", "jaxval/demo/demo.flags"} <= set(wheel.namelist())
