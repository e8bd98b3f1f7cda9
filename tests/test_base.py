from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxval.encoders import folder
from jaxval.errors import EncoderError, MismatchError
from jaxval.prepare.encoding import read_base

GOLDENS = Path(__file__).parent / "encoders" / "goldens" / "bert"


@pytest.fixture(scope="module")
def abstract():
    return folder.build(folder.read(str(GOLDENS))).abstract_params()


def test_a_base_may_be_a_model_folder_or_what_was_converted_from_it(abstract, tmp_path):
    weights, _ = folder.load_weights(folder.read(str(GOLDENS), weights=True))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "0", {"params": weights})
    expected = jax.tree.map(lambda leaf, spec: leaf.astype(spec.dtype), weights, abstract)
    for place in (GOLDENS, tmp_path, tmp_path / "0"):
        base = read_base(str(place), abstract)
        jax.tree.map(np.testing.assert_array_equal, base.params, expected)


def test_a_base_that_is_another_models_or_none_says_so(abstract, tmp_path):
    other = {**abstract, "embeddings": jax.tree.map(_longer, abstract["embeddings"])}
    with pytest.raises(MismatchError, match=r"position_embeddings/embedding is \[40, 32\]"):
        read_base(str(GOLDENS), other)
    with pytest.raises(EncoderError, match="config.json"):
        read_base(str(tmp_path), abstract)


def _longer(leaf):
    return jax.ShapeDtypeStruct((leaf.shape[0] + 1, *leaf.shape[1:]), leaf.dtype)
