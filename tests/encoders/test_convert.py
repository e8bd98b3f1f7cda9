import os
import shutil
import subprocess
import sys
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

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


def test_a_converted_checkpoint_restores_to_the_same_arrays(converted):
    directory, run = converted
    assert run.returncode == 0, run.stderr
    params, _ = folder.load_weights(folder.read(str(GOLDENS)))
    expected = {"params": params}
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(directory / "7", expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_weights_of_a_flax_model_are_converted(tmp_path):
    params, _ = folder.load_weights(folder.read(str(GOLDENS)))
    model = Path(shutil.copytree(GOLDENS, tmp_path / "model"))
    (model / "model.safetensors").unlink()
    backbone = {name: tree for name, tree in params.items() if name != "projection"}
    content = flax.serialization.msgpack_serialize(backbone)
    (model / "flax_model.msgpack").write_bytes(content)
    run = convert(f"--model={model}", f"--checkpoint_dir={tmp_path}")
    assert run.stdout.endswith("; left out: nothing\n"), run.stderr
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "0", {"params": params})
    jax.tree.map(np.testing.assert_array_equal, restored, {"params": params})


def test_the_output_is_one_line(converted):
    directory, run = converted
    assert run.stdout.count("\n") == 1
    assert run.stdout.startswith(f"wrote {directory / '7'}: 39 leaves, 20,944 param")
    assert "pooler.dense.weight" in run.stdout
    assert run.stderr == ""


def test_the_decoder_of_t5_is_left_out(tmp_path):
    model = Path(shutil.copytree(GOLDENS.parent / "t5", tmp_path / "model"))
    state = load_file(model / "model.safetensors")
    state |= {f"decoder.block.{number}.x": np.zeros(1) for number in range(9)}
    save_file({**state, "lm_head.weight": np.zeros(1)}, model / "model.safetensors")
    run = convert(f"--model={model}", f"--checkpoint_dir={tmp_path}")
    assert run.stdout.endswith("left out: decoder.* (9 arrays), lm_head.weight\n"), run.stderr
    encoder, golden = folder.build(folder.read(str(model))), np.load(model / "golden.npz")
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "0", {"params": encoder.abstract_params()})
    vectors = encoder.encode_passages(restored["params"], golden["ids"], golden["mask"])
    np.testing.assert_allclose(vectors, golden["vectors"], atol=1e-5)


def test_unfinished_checkpoints_of_a_trainer_are_not_touched(tmp_path):
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
def test_bad_input_exits_with_status_2_and_one_line(converted, model, step, message):
    run = convert(f"--model={model}", f"--checkpoint_dir={converted[0]}", f"--step={step}")
    assert run.returncode == 2
    assert run.stderr.startswith("jaxval: ")
    assert run.stderr.count("\n") == 1
    assert message in run.stderr
