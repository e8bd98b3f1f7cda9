from pathlib import Path

import numpy as np
import pytest

from jaxval.encoders.bert import BertConfig
from jaxval.encoders.blocks import ACTIVATIONS, buckets

BUCKETS = np.load(Path(__file__).parent / "goldens" / "buckets.npz")


@pytest.mark.parametrize(
    ("name", "at_one"),
    [("gelu", 0.841345), ("gelu_new", 0.841192), ("relu", 1), ("silu", 0.731059)],
)
def test_activations_by_hand(name, at_one):
    config = BertConfig.from_json({"model_type": "bert", "hidden_act": name})
    np.testing.assert_allclose(ACTIVATIONS[config.hidden_act](1.0), at_one, atol=1e-6)


@pytest.mark.parametrize("sizes", BUCKETS.files)
def test_buckets_equal_those_of_pytorch(sizes):
    count, furthest = map(int, sizes.split("/"))
    np.testing.assert_array_equal(buckets(301, count, furthest), BUCKETS[sizes])


def test_buckets_by_hand():
    assert buckets(3, 8, 16).tolist() == [2, 1, 0, 5, 6]
