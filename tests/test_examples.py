"""The examples, used as a reader would, with checkpoints that their own libraries write."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import transformers

from jaxval.checkpoints.commit import committed
from jaxval.checkpoints.restore import restore
from jaxval.encoders import factory
from jaxval.evaluation.encode import place

EXAMPLES = Path(__file__).parents[1] / "examples"
IDS = jnp.array([[2, 5, 9, 3], [2, 7, 3, 0]], jnp.int32)
MASK = IDS > 0


def linen_encoder(example):
    """Returns what a trainer saves, and the vectors of queries and passages."""
    model = example.Retriever()
    params = model.init(jax.random.key(1), IDS, MASK, method="queries")["params"]
    heads = model.init(jax.random.key(2), IDS, MASK, method="passages")["params"]
    params = {**params, "passage_head": heads["passage_head"]}
    queries, passages = (
        model.apply({"params": params}, IDS, MASK, method=method)
        for method in ("queries", "passages")
    )
    return params, queries, passages


def nnx_encoder(example):
    from flax import nnx

    model = example.Retriever(nnx.Rngs(1))
    model.eval()
    vectors = model(IDS, MASK)
    return nnx.state(model), vectors, vectors


def equinox_encoder(example):
    import equinox as eqx

    model = example.Retriever(jax.random.key(1))
    vectors = jax.vmap(model)(IDS, MASK)
    return eqx.filter(model, eqx.is_array), vectors, vectors


def bare_functions(example):
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), example.shapes()
    )
    queries = example.encode_queries(params, IDS, MASK)
    return params, queries, example.encode_passages(params, IDS, MASK)


def flax_auto_model(example):
    config = transformers.BertConfig.from_pretrained(FLAX_BERT)
    model = transformers.FlaxBertModel(config, seed=1, input_shape=(1, 8))
    vectors = model(IDS, MASK.astype("int32")).last_hidden_state[:, 0]
    return model.params, vectors, vectors


FLAX_BERT = Path(__file__).parent / "checkpoints" / "fixtures" / "flax_bert"
needs_flax = pytest.mark.skipif(
    not hasattr(transformers, "FlaxAutoModel"),
    reason=f"transformers {transformers.__version__} has no Flax models; 4.57 does",
)
SAVED = [
    *(linen_encoder, nnx_encoder, equinox_encoder, bare_functions),
    pytest.param(flax_auto_model, marks=needs_flax),
]


@pytest.mark.parametrize("saved", SAVED)
def test_an_example_restores_its_checkpoint_and_encodes_as_its_module_does(
    saved, tmp_path, monkeypatch
):
    monkeypatch.setenv("MODEL", str(FLAX_BERT))
    name = f"examples.{saved.__name__}"
    encoder = factory.load_factory(f"{name}:factory")
    factory.check(encoder, name)
    params, queries, passages = saved(importlib.import_module(name))
    with ocp.CheckpointManager(tmp_path) as manager:
        state = {"model": params, "opt_state": optax.adam(1e-3).init(params), "step": 3}
        manager.save(3, args=ocp.args.StandardSave(state))
    (checkpoint,) = committed(tmp_path)
    restored = restore(checkpoint, encoder.abstract_params())
    assert restored.found_at == "default/model"
    placed = place(restored.params, jax.devices()[:2])
    both = encoder.encode_queries, encoder.encode_passages
    vectors = [encode(placed, IDS, MASK) for encode in both]
    np.testing.assert_allclose(vectors, [queries, passages], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_shows_its_flag(path):
    text = path.read_text()
    assert text.count("\n") < 40
    assert f"--encoder=examples.{path.stem}:factory" in text


def test_every_example_is_tested():
    tested = {getattr(saved, "values", (saved,))[0].__name__ for saved in SAVED}
    assert tested == {path.stem for path in EXAMPLES.glob("*.py")}
