import dataclasses
import json
import shutil
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from jaxval.canonical import canonical, digest
from jaxval.encoders import folder
from jaxval.encoders.text_encoder import Projection
from jaxval.errors import EncoderError

GOLDENS = Path(__file__).parent / "goldens" / "bert"


@pytest.fixture
def model(tmp_path):
    """A copy of the golden folder: BERT, mean, dense with tanh, normalized."""
    return Path(shutil.copytree(GOLDENS, tmp_path / "model"))


@pytest.fixture
def bare(model):
    """The same folder without the modules of sentence-transformers."""
    (model / "modules.json").unlink()
    return model


def edit(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def refuse(name, patterns):
    raise AssertionError(f"asked the hub for {name}")


def read(path):
    return folder.read(str(path), download=refuse)


def test_a_folder_of_sentence_transformers_is_read(model):
    edit(model / "sentence_bert_config.json", max_seq_length=33)
    described = read(model)
    assert described.family == "bert"
    assert described.config.hidden_size == 32
    assert (described.pooling, described.normalize, described.max_seq_length) == (
        "mean",
        True,
        33,
    )
    assert described.projection == Projection(width=16, bias=True, activation="tanh")
    assert described.projection_path == model / "2_Dense"


def test_a_folder_without_modules_has_cls_pooling_and_no_normalization(bare):
    (bare / "sentence_bert_config.json").unlink()
    described = read(bare)
    assert (described.pooling, described.normalize, described.projection) == (
        "cls",
        False,
        None,
    )
    assert described.max_seq_length is None
    assert jax.eval_shape(
        folder.build(described).encode_queries, *arguments(described)
    ).shape == (
        2,
        32,
    )


@pytest.mark.parametrize(
    ("config", "prefixes"),
    [
        ({"prompts": {"query": "q: ", "document": "d: ", "passage": "p: "}}, ("q: ", "d: ")),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, ("q: ", "p: ")),
        ({"prompts": {"s2p": "x: "}, "default_prompt_name": "s2p"}, ("x: ", "x: ")),
        ({"prompts": {"query": None, "s2p": "x: "}}, ("", None)),
        ({"prompts": {"document": ""}, "default_prompt_name": None}, (None, "")),
        ({}, (None, None)),
    ],
)
def test_prompts_are_chosen_as_sentence_transformers_does(model, config, prefixes):
    (model / "config_sentence_transformers.json").write_text(json.dumps(config))
    described = read(model)
    assert (described.query_prefix, described.passage_prefix) == prefixes


def test_a_folder_without_prompts_has_no_prefixes(model):
    (model / "config_sentence_transformers.json").unlink()
    described = read(model)
    assert (described.query_prefix, described.passage_prefix) == (None, None)


def arguments(described, **options):
    params = folder.build(described, **options).abstract_params()
    ids = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    return params, ids, jax.ShapeDtypeStruct((2, 5), jnp.bool_)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_pooling_is_read_from_old_and_new_entries(model, config, pooling):
    (model / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert read(model).pooling == pooling


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pooling_mode": "max"}, "pooling max is not supported"),
        ({"pooling_mode": ["cls", "mean"]}, r"pooling cls \+ mean"),
        ({"pooling_mode_mean_tokens": False}, r"pooling \(none\) is not supported"),
        ({"pooling_mode": "mean", "include_prompt": False}, "a mean without the prompt"),
    ],
)
def test_unsupported_poolings_are_an_error(model, config, message):
    (model / "1_Pooling" / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match=message):
        read(model)


def test_the_transformer_may_be_in_a_subfolder(model):
    inner = model / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).rename(inner / name)
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (model / "modules.json").write_text(json.dumps(modules))
    described = read(model)
    assert described.path == inner
    assert "projection" in folder.load_weights(described)[0]


def test_overrides_and_truncation(model):
    described = read(model)
    params, _ = folder.load_weights(described)
    ids = np.array([[5, 6, 7]], np.int32)
    whole = folder.build(described, normalize=False).encode_queries(params, ids, ids > 0)
    short = folder.build(described, dim=4).encode_queries(params, ids, ids > 0)
    expected = whole[:, :4] / np.linalg.norm(whole[:, :4])
    np.testing.assert_allclose(short, expected, rtol=1e-5)
    cls = folder.build(described, pooling="cls").encode_queries(params, ids, ids > 0)
    mean = folder.build(described).encode_queries(params, ids, ids > 0)
    assert not np.allclose(cls, mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 17}, "16 components to 17"),
        ({"pooling": "max"}, "choose one of cls, mean, last"),
        ({"dtype": "float16"}, "float32, bfloat16"),
    ],
)
def test_overrides_out_of_range_are_an_error(model, options, message):
    with pytest.raises(EncoderError, match=message):
        folder.build(read(model), **options)


def test_the_digest_depends_only_on_what_defines_the_vectors(model):
    described = read(model)
    assert dataclasses.replace(described, path=Path("/elsewhere")).digest == described.digest
    edit(model / "config.json", transformers_version="6.0.0", architectures=["BertForMaskedLM"])
    assert read(model).digest == described.digest
    edit(model / "config.json", hidden_act="relu")
    assert read(model).digest != described.digest
    assert dataclasses.replace(described, pooling="cls").digest != described.digest


def extended(record, **values):
    """The record with a further field `added` of default 0, as a later version may have it."""
    kind = dataclasses.make_dataclass(
        "Extended", [("added", int, 0)], bases=(type(record),), frozen=True
    )
    return kind(**{**vars(record), **values})


def test_a_new_field_with_a_default_does_not_change_the_digest(model):
    described = read(model)
    before = described.digest
    assert extended(described).digest == before
    assert extended(described, added=1).digest != before
    for added, same in ((0, True), (1, False)):
        config = extended(described.config, added=added)
        assert (dataclasses.replace(described, config=config).digest == before) is same


def test_the_digest_is_that_of_the_settings_that_differ_from_their_defaults(model):
    described = {
        "family": "bert",
        "config": canonical(read(model).config),
        "pooling": "mean",
        "normalize": True,
        "projection": {"width": 16, "bias": True, "activation": "tanh"},
    }
    assert "hidden_act" not in described["config"]  # BERT's default
    assert read(model).digest == digest(described)


def test_weights_are_loaded_and_unused_ones_are_listed(model):
    params, ignored = folder.load_weights(read(model))
    assert sorted(ignored) == ["pooler.dense.bias", "pooler.dense.weight"]
    weight = load_file(model / "2_Dense" / "model.safetensors")["linear.weight"]
    np.testing.assert_array_equal(params["projection"]["kernel"], weight.T)
    expected = folder.build(read(model)).abstract_params()
    assert jax.tree.structure(params) == jax.tree.structure(expected)


def test_half_precision_becomes_float32(bare):
    path = bare / "model.safetensors"
    whole = load_file(path)
    dtypes = ("bfloat16", "float16")
    halved = {
        name: array.astype(jnp.dtype(dtypes[number % 2]))
        for number, (name, array) in enumerate(whole.items())
    }
    save_file(halved, path)
    params, _ = folder.load_weights(read(bare))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    words = params["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_allclose(words, whole["embeddings.word_embeddings.weight"], rtol=1e-2)


def test_sharded_weights_are_loaded(bare):
    path = bare / "model.safetensors"
    whole, _ = folder.load_weights(read(bare))
    state = load_file(path)
    shards = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(state)}
    for shard in set(shards.values()):
        save_file({name: state[name] for name in state if shards[name] == shard}, bare / shard)
    (bare / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    path.unlink()
    jax.tree.map(np.testing.assert_array_equal, folder.load_weights(read(bare))[0], whole)


def as_msgpack(path, state):
    tree = traverse_util.unflatten_dict(state, sep="/")
    (path / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))


def as_safetensors(path, state):
    dotted = {
        name.replace("/", "."): np.ascontiguousarray(leaf) for name, leaf in state.items()
    }
    save_file(dotted, path / "model.safetensors", metadata={"format": "flax"})


@pytest.mark.parametrize("prefix", ["", "bert/"])
@pytest.mark.parametrize("save", [as_msgpack, as_safetensors])
def test_weights_of_flax_models_of_transformers_are_loaded(bare, save, prefix):
    whole, _ = folder.load_weights(read(bare))
    (bare / "model.safetensors").unlink()
    state = traverse_util.flatten_dict(whole, sep="/")
    heads = {"pooler/dense/bias": np.zeros(2, np.float32)}
    save(bare, {prefix + name: leaf for name, leaf in (state | heads).items()})
    params, ignored = folder.load_weights(read(bare))
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    assert ignored == [f"{prefix}pooler/dense/bias".replace("/", ".")]


def test_flax_weights_that_do_not_fit_config_json_are_an_error(bare):
    whole, _ = folder.load_weights(read(bare))
    (bare / "model.safetensors").unlink()
    state = traverse_util.flatten_dict(whole, sep="/")
    as_msgpack(bare, state | {"embeddings/LayerNorm/scale": np.zeros(3, np.float32)})
    with pytest.raises(EncoderError, match=r"embeddings.LayerNorm.scale has shape \(3,\)"):
        folder.load_weights(read(bare))
    del state["embeddings/LayerNorm/scale"]
    as_msgpack(bare, state)
    with pytest.raises(EncoderError, match=r"weights lack embeddings.LayerNorm.scale, which"):
        folder.load_weights(read(bare))


def test_weights_of_a_hub_model_are_downloaded_only_on_request(model):
    asked = []

    def download(name, patterns):
        asked.append((name, "*.safetensors" in patterns))
        return str(model)

    assert folder.read("org/name", download=download).path == model
    assert folder.read("org/name", weights=True, download=download).path == model
    assert asked == [("org/name", False), ("org/name", True)]


def test_an_unreachable_hub_is_an_error_of_one_line():
    def download(name, patterns):
        raise OSError("no route\nto host")

    with pytest.raises(EncoderError, match="`model=org/name`: no such folder") as caught:
        folder.read("org/name", download=download)
    assert "\n" not in str(caught.value)


def test_broken_descriptions_name_the_file(bare):
    (bare / "config.json").write_text('{\n"model_type": bert}')
    with pytest.raises(EncoderError, match=r"config.json:2: broken JSON"):
        read(bare)
    (bare / "config.json").unlink()
    with pytest.raises(EncoderError, match=r"config.json: cannot be read"):
        read(bare)


@pytest.mark.parametrize("entries", [{"model_type": "mamba"}, {"hidden_act": "laplace"}])
def test_an_unsupported_model_type_is_an_error(bare, entries):
    edit(bare / "config.json", **entries)
    with pytest.raises(EncoderError, match=r"config.json: .* with `encoder`"):
        read(bare)


@pytest.mark.parametrize(
    "kinds",
    [["Transformer", "CNN", "Pooling"], ["Pooling"], [], ["Transformer", "Dense", "Dense"]],
)
def test_unsupported_modules_are_an_error(model, kinds):
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in kinds]
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match=r"modules.json: the modules"):
        read(model)


@pytest.mark.parametrize(
    "entries",
    [
        {"activation_function": "torch.nn.GELU"},
        {"use_residual": True},
        {"module_input_name": "x"},
    ],
)
def test_unsupported_projections_are_an_error(model, entries):
    edit(model / "2_Dense" / "config.json", **entries)
    with pytest.raises(EncoderError, match="only a dense layer"):
        read(model)


def test_missing_or_broken_weights_are_an_error(bare):
    (bare / "model.safetensors").write_bytes(b"short")
    with pytest.raises(EncoderError, match="cannot be read as safetensors"):
        folder.load_weights(read(bare))
    (bare / "model.safetensors").unlink()
    (bare / "flax_model.msgpack").write_bytes(b"short")
    with pytest.raises(EncoderError, match=r"flax_model.msgpack: cannot be read as msgpack"):
        folder.load_weights(read(bare))
    (bare / "flax_model.msgpack").unlink()
    with pytest.raises(EncoderError, match=r"has no model.safetensors and no flax"):
        folder.load_weights(read(bare))
