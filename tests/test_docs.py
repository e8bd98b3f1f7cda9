"""What the documentation shows works, and what there is to document is documented.

Commands and code run as they are shown. Paths of the examples are replaced by a small model,
a small data set and a few checkpoints.
"""

import ast
import importlib.util
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxval
from jaxval.records import Tracker
from jaxval.results.ledger import Ledger

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
MODEL = ROOT / "tests/encoders/goldens/bert"
LETTERS = "abcdefghijklmnopqrstuvwxyz"

OTHERS = {"flagfile", "help", "requeue", "jaxval_output_dir", "logdir"}
"""Flags of absl, SLURM, the demo's trainer and TensorBoard."""

GENERATED = {
    DOCS / "tutorial/notebook.md": DOCS / "tutorial/notebook.ipynb",
    DOCS / "images/fidelity.png": ROOT / "benchmarks/fidelity/fidelity.png",
}
"""Files that scripts/docs_site.py adds to the site, and where they come from."""


def relative(path):
    return str(path.relative_to(ROOT))


def script(name):
    """A module of scripts/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, empty if it has none, and its text."""

    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S)
    return [Block(language, text) for language, text in blocks]


def commands(path: Path) -> list[str]:
    """The lines of a page's blocks without a language that begin with a program."""
    lines = [line for b in blocks(path) if not b.language for line in b.text.splitlines()]
    return [line for line in lines if re.match(r"(python|make|ls|tail|pip) ", line)]


def code(path: Path) -> list[str]:
    return [block.text for block in blocks(path) if block.language == "python"]


# The small world in which the examples run.

SLOW = {"make demo", "python -m jaxval.demo"}
"""Commands that train; tests/demo runs what they run."""

DEMO = "python -m jaxval.main --flagfile=jaxval/demo/demo.flags"
"""The command that the demo starts with its trainer."""

INSTALLS = ("pip ", "make ")
"""How commands begin that change the environment."""

SHOWN = (ROOT / "README.md", DOCS / "tutorial/first-run.md", DOCS / "how-to/baseline.md")
"""Pages whose commands are run. The order is that of a reader, but for the baseline, which
makes the first checkpoint."""


PYTHON = (
    ROOT / "README.md",
    DOCS / "tutorial/first-run.md",
    DOCS / "how-to/results.md",
)
"""Pages whose Python is run, block after block."""


class World:
    """Directories and files that replace those of the examples.

    Attributes:
      root: The working directory; has experiments/, models/, data/ and runs/demo/.
      finished: Command -> what became of it, for those that have run.
    """

    def __init__(self, root: Path):
        self.root = root
        self.finished: dict[str, subprocess.CompletedProcess] = {}

    def place(self, text: str) -> str:
        """Replaces the examples' paths and their GPU."""
        text = re.sub(r"/(?=(?:experiments|models|data)/)", f"{self.root}/", text)
        text = text.replace("--flagfile=jaxval/", f"--flagfile={ROOT}/jaxval/")
        return text.replace("--devices=gpu:1", "--devices=cpu")

    def run(self, command: str) -> subprocess.CompletedProcess:
        """Runs a command of the documentation, once."""
        if command not in self.finished:
            self.finished[command] = self.start(command)
        return self.finished[command]

    def start(self, command: str) -> subprocess.CompletedProcess:
        """Runs a command."""
        line = self.place(command).replace("python ", f"{sys.executable} ", 1)
        return subprocess.run(line.split(), cwd=self.root, text=True, capture_output=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    world = World(tmp_path_factory.mktemp("docs"))
    for name in ("bert-base-uncased", "e5-base"):
        shutil.copytree(MODEL, world.root / "models" / name)
    write_texts(world.root / "data/nq-dev")
    write_texts(world.root / "runs/demo/data")
    shutil.copytree(MODEL, world.root / "runs/demo/model")
    (baseline,) = commands(DOCS / "how-to/baseline.md")
    assert world.run(baseline).returncode == 0, world.run(baseline).stderr
    save_steps(world.root / "experiments/run1/checkpoints")
    save_own(world.root / "experiments/run2/checkpoints")
    save_demo(world.root / "runs/demo/checkpoints")
    flags = next(b.text for b in blocks(ROOT / "README.md") if "--checkpoint_dir" in b.text)
    (world.root / "val.flags").write_text(world.place(flags))
    demo = world.start(DEMO)
    assert "2 validated" in demo.stdout, demo.stderr
    return world


def write_texts(folder: Path) -> None:
    """Passages of three letters, and queries that repeat them."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.permutation(list(LETTERS))[:3]) for _ in range(32)]
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        lines = [json.dumps({"_id": f"{i}", "text": text}) for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    judgments = "".join(f"{i}\t{i}\t1\n" for i in range(len(texts)))
    (folder / "qrels/test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judgments}")


def save(path: Path, params) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"params": params})


def save_steps(checkpoints: Path) -> None:
    """Steps 900 and 1200, made of step 0 by noise; no other will follow."""
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(checkpoints / "0")["params"]
    for step in (900, 1200):
        rng = np.random.default_rng(step)
        leaves, tree = jax.tree.flatten(params)
        noisy = [x + rng.normal(0, 0.3, x.shape).astype(x.dtype) for x in leaves]
        save(checkpoints / str(step), jax.tree.unflatten(tree, noisy))
    (checkpoints / "train_complete").touch()


def save_own(checkpoints: Path) -> None:
    ids = np.zeros((1, 8), np.int32)
    save(checkpoints / "1200", my_encoder().init(jax.random.key(0), ids, ids == 0)["params"])


def my_encoder():
    """The MyEncoder of the examples."""
    from flax import linen as nn

    class MyEncoder(nn.Module):
        @nn.compact
        def __call__(self, ids, mask):
            vectors = nn.Embed(60, 8)(ids) * mask[..., None]
            return vectors.sum(1) / mask.sum(1, keepdims=True).clip(1)

    return MyEncoder()


def save_demo(checkpoints: Path) -> None:
    from jaxval.demo.model import Model

    ids = np.zeros((1, 8), np.int32)
    for step in (25, 50):
        params = Model().init(jax.random.key(step), ids, ids == 0)["params"]
        save(checkpoints / str(step), params)
    (checkpoints / "train_complete").touch()


def shown() -> Iterator[tuple[Path, str]]:
    """Each command that is run, and the first page that shows it."""
    seen = set(SLOW)
    for page in SHOWN:
        for command in commands(page):
            if command not in seen and not command.startswith(INSTALLS):
                seen.add(command)
                yield page, command


# Commands and code.


@pytest.mark.parametrize(("page", "command"), [pytest.param(*c, id=c[1]) for c in shown()])
def test_a_command_runs_as_it_is_shown(page, command, world):
    finished = world.run(command)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout


def test_a_second_start_validates_nothing_again(world):
    assert "0 validated, 2 already in the ledger" in world.run(DEMO).stdout


def test_the_report_of_a_check_has_the_lines_that_its_page_shows(world):
    finished = world.run("python -m jaxval.main --flagfile=val.flags --check")
    (report,) = (b.text for b in blocks(DOCS / "how-to/check.md") if b.language == "text")
    printed, shown = (
        set(re.findall(r"^  ([a-z]+(?: [a-z]+)?) {2,}", text, re.M))
        for text in (finished.stdout, report)
    )
    assert {"parameters", "ranking"} < printed
    ours = {"nq-dev", "dev", "docstrings", "uncertain"}  # sets, and a line of busy machines
    assert printed - ours == shown - ours


@pytest.mark.parametrize("page", PYTHON, ids=relative)
def test_the_python_of_a_page_runs(page, world, monkeypatch):
    world.run("python -m jaxval.main --flagfile=val.flags")
    monkeypatch.chdir(world.root)
    names = {"MyEncoder": my_encoder}
    for number, text in enumerate(code(page)):
        exec(compile(world.place(text), f"{relative(page)}, block {number}", "exec"), names)


def test_every_block_of_python_can_be_parsed():
    for page in TEXTS:
        for text in code(page):
            ast.parse(text)


def test_the_tracker_of_contributing_has_the_methods_of_a_tracker():
    names = {}
    (text,) = code(ROOT / "CONTRIBUTING.md")
    exec(text, names)
    for method in ("begin", "record", "fail", "end"):
        example, protocol = getattr(names["Webhook"], method), getattr(Tracker, method)
        assert list(signature(example).parameters) == list(signature(protocol).parameters)


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = {}
    notebook = json.loads((DOCS / "tutorial/notebook.ipynb").read_text("utf-8"))
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    by_step = {result.step: result.measures for result in names["run"].results}
    assert by_step[20] == names["result"].measures
    assert names["best"].step > 0


# What there is, is documented; what is documented, is there.


def test_the_page_of_flags_is_up_to_date():
    reference = script("make_flags_reference")
    assert reference.PAGE.read_text("utf-8") == reference.page(), (
        "run python scripts/make_flags_reference.py"
    )


def test_the_page_of_flags_has_every_command():
    doors = [
        path.stem
        for path in (ROOT / "jaxval").glob("*.py")
        if '__name__ == "__main__"' in path.read_text("utf-8")
    ]
    assert set(script("make_flags_reference").COMMANDS) == set(doors)


def test_every_flag_that_is_mentioned_exists():
    reference = DOCS / "reference/flags.md"
    known = set(re.findall(r"^\| `--(\w+)`", reference.read_text("utf-8"), re.M)) | OTHERS
    for page in sorted({*TEXTS} - {reference}):
        text = page.read_text("utf-8")
        if page.name == "asyncval.md":  # its first column has Asyncval's flags
            text = re.sub(r"^\| [^|]*\|", "", text, flags=re.M)
        mentioned = set(re.findall(r"(?<![\w-])--([a-z]\w+)", text))
        unknown = {name for name in mentioned - known if name.removeprefix("no") not in known}
        assert not unknown, (relative(page), unknown)


def test_every_exported_name_is_documented():
    page = (DOCS / "reference/api.md").read_text("utf-8")
    documented = set(re.findall(r"^::: jaxval\.(\w+)$", page, re.M))
    assert documented == {name for name in jaxval.__all__ if not name.startswith("__")}


def test_every_table_and_column_of_the_ledger_is_documented(tmp_path):
    Ledger(tmp_path / "ledger.sqlite").close()
    page = (DOCS / "reference/output.md").read_text("utf-8")
    sections = dict(re.findall(r"^### `(\w+)`.*?\n(.*?)(?=^##|\Z)", page, re.M | re.S))
    database = sqlite3.connect(tmp_path / "ledger.sqlite")
    tables = [
        row[0]
        for row in database.execute(
            "SELECT name FROM sqlite_master WHERE sql LIKE 'CREATE TABLE%'"
        )
    ]
    assert tables
    for table in tables:
        columns = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
        listed = re.findall(r"^\| (`.*?) \|", sections[table], re.M)
        assert columns <= {name for cell in listed for name in re.findall(r"`(\w+)`", cell)}, (
            table
        )
    database.close()


def test_every_room_is_in_the_table_of_contributing():
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    listed = set(
        re.findall(r"`([\w.]+)/?`", "".join(re.findall(r"^\| \d \|([^|]*)\|", table, re.M)))
    )
    paths = {path for path in (ROOT / "jaxval").iterdir() if not path.name.startswith("_")}
    assert listed == {path.name for path in paths if path.is_dir() or path.suffix == ".py"}


def test_every_message_of_troubleshooting_is_in_the_code():
    words = " ".join(" ".join(strings(path)) for path in (ROOT / "jaxval").rglob("*.py"))
    page = (DOCS / "how-to/troubleshooting.md").read_text("utf-8")
    messages = re.findall(r"^\| `(.+?)` \|", page, re.M)
    assert messages
    parts = {part for message in messages for part in fixed_parts(message)}
    assert not {part for part in parts if part not in words}


def fixed_parts(message: str) -> list[str]:
    """What of a message does not depend on names and numbers, with settings as in the code."""
    settings = re.sub(r"--(\w+)", r"\1", message)
    return [part.strip(" =") for part in settings.split("…")]


def strings(path: Path) -> Iterator[str]:
    """The string literals of a module without backticks; `{}` replaces a value."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "{}" for p in node.values]
            yield "".join(map(str, parts)).replace("`", "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.replace("`", "")


# Links.


def test_every_page_is_in_the_navigation():
    navigation = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8")))
    there = {
        str(page.relative_to(DOCS)) for page in [*PAGES, *GENERATED] if page.suffix == ".md"
    }
    assert navigation == there


@pytest.mark.parametrize("page", TEXTS, ids=relative)
def test_no_link_is_dead(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        path = GENERATED.get(path, path)
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("page", TEXTS, ids=relative)
def test_every_file_that_is_included_exists(page):
    for name in re.findall(r'--8<-- "([^":]+)', page.read_text("utf-8")):
        assert (ROOT / name).is_file(), name


def anchors(page: Path) -> set[str]:
    """The names of a page's headings in links, as MkDocs makes them."""
    text = re.sub(
        r'^--8<-- "([^":]+)"$',
        lambda included: (ROOT / included[1]).read_text("utf-8"),
        page.read_text("utf-8"),
        flags=re.M,
    )
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        explicit = re.search(r"\{ #([\w-]+) \}$", heading)
        slug = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        anchors.add(explicit[1] if explicit else re.sub(r"[-\s]+", "-", slug))
    return anchors
