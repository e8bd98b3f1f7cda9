import jax
import numpy as np
import pytest
from flax import traverse_util

from jaxval.encoders import torch_names
from jaxval.encoders.adapter import from_linen
from jaxval.encoders.bert import Bert, BertConfig
from jaxval.errors import EncoderError


def tiny(**changes):
    sizes = {"vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 6}
    return BertConfig(**{**sizes, "num_attention_heads": 2, **changes})


def from_torch(state, config):
    return torch_names.from_torch(state, Bert(config), "embeddings.word_embeddings.weight")


def torch_state(config):
    """Returns a state dict as of BertModel in PyTorch, each array with a different value."""
    tree = traverse_util.flatten_dict(from_linen(Bert(config)).abstract_params())
    state = {}
    for number, (path, leaf) in enumerate(tree.items()):
        array = np.full(leaf.shape, number, np.float32)
        name = ".".join((*path[:-1], "bias" if path[-1] == "bias" else "weight"))
        state[name] = array.T if path[-1] == "kernel" else array
    return state


@pytest.mark.parametrize("prefix", ["", "bert.", "0.auto_model."])
def test_a_state_dict_may_have_any_prefix(prefix):
    config = tiny()
    state = torch_state(config)
    heads = {"cls.predictions.bias": np.zeros(7), "embeddings.position_ids": np.arange(3)}
    tree, ignored = from_torch({**{prefix + k: v for k, v in state.items()}, **heads}, config)
    assert ignored == list(heads)
    kernel = tree["encoder"]["layer"]["0"]["intermediate"]["dense"]["kernel"]
    assert kernel.shape == (8, 6)
    shapes = from_linen(Bert(config)).abstract_params()
    assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, shapes)
    assert [leaf.flat[0] for leaf in jax.tree.leaves(tree)] == list(range(len(state)))


def test_old_names_of_layer_norms_are_accepted():
    config = tiny()
    old = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): array
        for name, array in torch_state(config).items()
    }
    tree, ignored = from_torch(old, config)
    assert ignored == []
    assert set(tree["embeddings"]["LayerNorm"]) == {"bias", "scale"}


def test_the_error_for_missing_weights_names_them():
    state = torch_state(tiny())
    with pytest.raises(EncoderError, match=r"lack encoder.layer.1.*and 13 more"):
        from_torch(state, tiny(num_hidden_layers=2))
    with pytest.raises(EncoderError, match=r"contain 0 arrays named embeddings.word"):
        from_torch({}, tiny())


def test_the_error_for_a_wrong_shape_names_the_weight():
    with pytest.raises(EncoderError, match=r"word_embeddings.*\(7, 8\).*\(9, 8\)"):
        from_torch(torch_state(tiny()), tiny(vocab_size=9))
