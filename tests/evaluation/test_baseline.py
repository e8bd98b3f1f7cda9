"""Model folders as checkpoints, by a function and by the process jaxval.convert."""

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

import jaxval.convert
from jaxval.cli import apps, frame
from jaxval.encoders import folder
from jaxval.evaluation.baseline import write_baseline

GOLDENS = Path(__file__).parents[1] / "encoders" / "goldens" / "bert"


def restore(checkpoint, expected):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(checkpoint, {"params": expected})["params"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A directory with step 7, and what the process printed."""
    directory = tmp_path_factory.mktemp("checkpoints")
    flags = (f"--model={GOLDENS}", f"--checkpoint_dir={directory}", "--step=7")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cuda"}
    ran = subprocess.run(
        [sys.executable, "-m", "jaxval.convert", *flags],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    return directory, ran


def test_process_uses_the_cpu_and_prints_one_line(converted):
    directory, ran = converted
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("\n") == 1
    assert ran.stdout.startswith(f"wrote {directory / '7'}: 39 leaves, 20,944 parameters, ")
    assert "pooler.dense.weight" in ran.stdout


def test_checkpoint_has_the_arrays_of_the_folder(converted):
    params, _ = folder.load_weights(folder.read(str(GOLDENS)))
    restored = restore(converted[0] / "7", params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_weights_saved_by_flax_are_converted(tmp_path):
    params, _ = folder.load_weights(folder.read(str(GOLDENS)))
    model = Path(shutil.copytree(GOLDENS, tmp_path / "model"))
    (model / "model.safetensors").unlink()
    backbone = {name: tree for name, tree in params.items() if name != "projection"}
    content = flax.serialization.msgpack_serialize(backbone)
    (model / "flax_model.msgpack").write_bytes(content)
    assert write_baseline(str(model), tmp_path, 0).endswith("; left out: nothing")
    restored = restore(tmp_path / "0", params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_decoder_of_a_t5_is_left_out_and_vectors_are_the_same(tmp_path):
    model = Path(shutil.copytree(GOLDENS.parent / "t5", tmp_path / "model"))
    state = load_file(model / "model.safetensors")
    state |= {f"decoder.block.{number}.x": np.zeros(1) for number in range(9)}
    save_file({**state, "lm_head.weight": np.zeros(1)}, model / "model.safetensors")
    summary = write_baseline(str(model), tmp_path, 0)
    assert summary.endswith("left out: decoder.* (9 arrays), lm_head.weight")
    encoder, golden = folder.build(folder.read(str(model))), np.load(model / "golden.npz")
    params = restore(tmp_path / "0", encoder.abstract_params())
    vectors = encoder.encode_passages(params, golden["ids"], golden["mask"])
    np.testing.assert_allclose(vectors, golden["vectors"], atol=1e-5)


def test_unfinished_checkpoint_of_a_trainer_is_kept(tmp_path):
    unfinished = tmp_path / "3.orbax-checkpoint-tmp"
    unfinished.mkdir()
    write_baseline(str(GOLDENS), tmp_path, 0)
    assert unfinished.is_dir()
    assert (tmp_path / "0" / "_CHECKPOINT_METADATA").is_file()


@pytest.mark.parametrize(
    ("model", "checkpoint_dir", "message"),
    [
        (GOLDENS, "with_0", "exists already: choose another --step"),
        (GOLDENS, "a_file", "cannot be written: "),
        ("/not/there", "new", "no such folder"),
        (GOLDENS, "", "set --model=FOLDER and --checkpoint_dir=DIR"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    tmp_path, monkeypatch, capsys, model, checkpoint_dir, message
):
    (tmp_path / "with_0" / "0").mkdir(parents=True)
    (tmp_path / "a_file").touch()
    monkeypatch.setattr(os, "environ", dict(os.environ))
    directory = tmp_path / checkpoint_dir if checkpoint_dir else ""
    flags = ["convert", f"--model={model}", f"--checkpoint_dir={directory}"]
    assert frame.call(jaxval.convert.main, apps.CONVERT.parse(flags)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("jaxval: ")
    assert output.err.count("\n") == 1
    assert message in output.err
