"""Tests of the encoder and the base parameters that the settings name."""

import shutil
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxval.encoders import folder
from jaxval.errors import EncoderError, MismatchError
from jaxval.evaluation.encoding import read_base

GOLDENS = Path(__file__).parents[1] / "encoders" / "goldens" / "bert"


@pytest.fixture(scope="module")
def abstract():
    return folder.build(folder.read(str(GOLDENS))).abstract_params()


def test_the_base_may_be_a_model_folder_or_a_checkpoint_made_from_it(abstract, tmp_path):
    weights, _ = folder.load_weights(folder.read(str(GOLDENS), weights=True))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "0", {"params": weights})
    expected = jax.tree.map(lambda leaf, spec: leaf.astype(spec.dtype), weights, abstract)
    for place in (GOLDENS, tmp_path, tmp_path / "0"):
        base = read_base(str(place), abstract)
        jax.tree.map(np.testing.assert_array_equal, base.params, expected)


def test_the_base_may_be_a_folder_saved_by_flax(abstract, tmp_path):
    weights, _ = folder.load_weights(folder.read(str(GOLDENS), weights=True))
    shutil.copytree(GOLDENS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    del weights["projection"]  # it has a folder of its own
    content = flax.serialization.msgpack_serialize(
        {"bert": weights, "cls": {"bias": np.ones(2)}}
    )
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    base, expected = (read_base(str(place), abstract) for place in (tmp_path, GOLDENS))
    jax.tree.map(np.testing.assert_array_equal, base.params, expected.params)


def test_a_base_of_another_model_or_none_is_an_error(abstract, tmp_path):
    other = {**abstract, "embeddings": jax.tree.map(_longer, abstract["embeddings"])}
    with pytest.raises(MismatchError, match=r"position_embeddings/embedding is \[40, 32\]"):
        read_base(str(GOLDENS), other)
    for place in (tmp_path, tmp_path / "nosuch"):
        with pytest.raises(
            EncoderError, match="neither an Orbax checkpoint .* nor a model fol"
        ):
            read_base(str(place), abstract)


def _longer(leaf):
    return jax.ShapeDtypeStruct((leaf.shape[0] + 1, *leaf.shape[1:]), leaf.dtype)
