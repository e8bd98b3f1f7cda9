"""dense:depth=N as a process: samples by a checkpoint's ranking."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxval.corpus import readers
from tests.e2e import world

ROOT = Path(__file__).parents[2]
JUDGED = {passage for grades in world.QRELS.values() for passage in grades}


def save_all(directory):
    """Saves a checkpoint for each step."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(directory) as manager:
        for step in range(4):
            state = {"params": {"words": {"embedding": world.table(step)}}}
            manager.save(step, args=ocp.args.StandardSave(state))
    return directory


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    root = tmp_path_factory.mktemp("dense")
    return {
        "checkpoint_dir": save_all(root / "checkpoints"),
        "dataset": f"tiny:{world.write_texts(root / 'texts')}",
        "encoder": "tests.e2e.world:encoder",
        "tokenizer": world.write_tokenizer(root / "tokenizer"),
        "devices": "cpu",
    }


def start(app, *extra, **flags):
    listed = [f"--{name}={value}" for name, value in flags.items()]
    command = [sys.executable, "-m", f"jaxval.{app}", *listed, *extra]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120)


def best(step, depth):
    """Returns the passages that a step's parameters rank highest, by NumPy."""

    def encode(text):
        words = [world.VOCABULARY.index(word) for word in ["[CLS]", *text.split(), "[SEP]"]]
        return world.table(step)[words].mean(0)

    passages = list(world.PASSAGES)
    vectors = np.array([encode(text) for text in world.PASSAGES.values()])
    return {
        passages[row]
        for text in world.QUERIES.values()
        for row in np.argsort(-(vectors @ encode(text)), kind="stable")[:depth]
    }


def test_a_sample_follows_the_checkpoints_ranking(flags, tmp_path):
    output = tmp_path / "sample"
    flags = flags | {"strategy": "dense:depth=2", "dense_step": 3, "output_dir": output}
    ran = start("sample", **flags)
    assert ran.returncode == 0, ran.stderr
    kept = {text.id for text in readers.read_texts(output / "corpus.jsonl")}
    assert kept == JUDGED | best(3, 2)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["dense"]["checkpoint"] == "3"
    assert manifest["dense"]["encoder"]["encoder"] == "tests.e2e.world:encoder"
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
    again = start("sample", **flags)
    assert "holds this sample already: nothing to do" in again.stdout, again.stderr
    assert "encoding" not in again.stderr
    other = start("sample", **flags | {"dense_step": 2})
    assert "holds another sample (another checkpoint or encoder)" in other.stderr


def test_fidelity_takes_the_checkpoints_ranking(flags, tmp_path):
    given = flags | {"dense_step": 3, "output_dir": tmp_path, "steps": "0,1,2"}
    ran = start("fidelity", "--strategy=dense:depth=2", "--strategy=dense:depth=1", **given)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path / "fidelity.json").read_text())
    counts = {row["strategy"]: row["passages"] for row in report["strategies"]}
    assert counts == {
        "full": len(world.PASSAGES),
        "dense:depth=2": len(JUDGED | best(3, 2)),
        "dense:depth=1": len(JUDGED | best(3, 1)),
    }


@pytest.mark.parametrize(
    ("app", "given", "message"),
    [
        ("sample", {"dense_step": 9}, "--dense_step=9 is not in"),
        ("fidelity", {"dense_step": 9}, "--dense_step=9 is not in"),
        ("fidelity", {}, "dense:depth=1 needs --dense_step=STEP"),
        (
            "sample",
            {"dense_step": 3, "rerank": "/a.trec"},
            "--rerank does not rank the whole corpus",
        ),
    ],
)
def test_bad_settings_are_refused(flags, tmp_path, app, given, message):
    given = {"strategy": "dense:depth=1", "output_dir": tmp_path / "out", **given}
    ran = start(app, **flags | given)
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("jaxval: ")]
    assert message in line
    assert not (tmp_path / "out").exists()


def test_without_a_dense_part_jax_is_not_imported():
    script = (
        "import sys, jaxval.sample; sys.exit(any(name in sys.modules for name in ('jax',)))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
