import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxval.encoders import folder

GOLDENS = Path(__file__).parent / "goldens" / "bert"


def convert(*flags):
    command = [sys.executable, "-m", "jaxval.convert", *flags]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    run = convert(f"--model={GOLDENS}", f"--checkpoint_dir={directory}", "--step=7")
    return directory, run


def test_it_restores_to_the_same_arrays(converted):
    directory, run = converted
    assert run.returncode == 0, run.stderr
    params, _ = folder.load_weights(folder.read(str(GOLDENS)))
    expected = {"params": params}
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(directory / "7", expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_it_says_in_one_line_what_it_wrote(converted):
    directory, run = converted
    assert run.stdout.count("\n") == 1
    assert run.stdout.startswith(f"wrote {directory / '7'}: 39 leaves, 20,944 param")
    assert "pooler.dense.weight" in run.stdout
    assert run.stderr == ""


def test_it_leaves_what_a_trainer_is_writing(tmp_path):
    unfinished = tmp_path / "3.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert convert(f"--model={GOLDENS}", f"--checkpoint_dir={tmp_path}").returncode == 0
    assert unfinished.is_dir()
    assert (tmp_path / "0" / "_CHECKPOINT_METADATA").is_file()


@pytest.mark.parametrize(
    ("model", "step", "message"),
    [
        (GOLDENS, "7", "exists already"),
        (GOLDENS, "-1", "not a non-negative integer"),
        ("/not/there", "8", "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(converted, model, step, message):
    run = convert(f"--model={model}", f"--checkpoint_dir={converted[0]}", f"--step={step}")
    assert run.returncode == 2
    assert run.stderr.startswith("jaxval: ")
    assert run.stderr.count("\n") == 1
    assert message in run.stderr
