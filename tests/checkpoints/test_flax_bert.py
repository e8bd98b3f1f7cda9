"""Checkpoints of FlaxBertModel of transformers 4, as tevax and TrainState save them."""

import numpy as np
import pytest

from jaxval.checkpoints.restore import restore
from jaxval.encoders import folder
from tests.checkpoints.conftest import FIXTURES
from tests.checkpoints.world import only

MADE = FIXTURES / "flax_bert"


@pytest.fixture(scope="module")
def encoder():
    return folder.build(folder.read(str(MADE)))


@pytest.fixture(scope="module")
def golden():
    return np.load(MADE / "golden.npz")


@pytest.mark.parametrize(
    ("kind", "found_at"),
    {"train_state": "default/params", "tied": "default/params/params"}.items(),
)
def test_a_tied_tree_is_found_and_gives_the_same_vectors(
    fixtures, encoder, golden, kind, found_at
):
    restored = restore(only(fixtures / "flax_bert" / kind), encoder.abstract_params())
    assert (restored.found_at, restored.untied) == (found_at, False)
    assert restored.remarks == (f"left out: {found_at}/pooler",)
    vectors = encoder.encode_queries(restored.params, golden["ids"], golden["mask"])
    np.testing.assert_allclose(vectors, golden["query"], atol=1e-5)


def test_the_first_of_dual_params_is_the_query_tower(fixtures, encoder, golden):
    restored = restore(only(fixtures / "flax_bert" / "dual"), encoder.abstract_params())
    assert restored.untied
    for tower, encode in {
        "query": encoder.encode_queries,
        "passage": encoder.encode_passages,
    }.items():
        vectors = encode(restored.params[tower], golden["ids"], golden["mask"])
        np.testing.assert_allclose(vectors, golden[tower], atol=1e-5)
    assert np.abs(golden["query"] - golden["passage"]).max() > 0.1
