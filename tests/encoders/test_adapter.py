import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxval.encoders import adapter
from jaxval.encoders.adapter import FunctionEncoder, from_linen, load_factory
from jaxval.errors import EncoderError

IDS = jnp.array([[1, 2, 3], [3, 1, 0]], jnp.int32)
MASK = IDS > 0


class Tied(nn.Module):
    @nn.compact
    def __call__(self, ids, mask):
        hidden = nn.Embed(5, 4, name="words")(ids)
        return jnp.where(mask[:, :, None], hidden, 0).sum(1)


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, ids, mask):
        init = nn.with_logical_partitioning(nn.initializers.ones, ("vocab", "embed"))
        hidden = nn.Embed(5, 4, embedding_init=init, name="words")(ids)
        return jnp.where(mask[:, :, None], hidden, 0).sum(1)


class Untied(nn.Module):
    def setup(self):
        self.words = nn.Embed(5, 4)
        self.query_head = nn.Dense(2)
        self.passage_head = nn.Dense(2, use_bias=False)

    def queries(self, ids, mask):
        return self.query_head(jnp.where(mask[:, :, None], self.words(ids), 0).sum(1))

    def passages(self, ids, mask):
        return self.passage_head(jnp.where(mask[:, :, None], self.words(ids), 0).sum(1))


def ones(encoder):
    return jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape, leaf.dtype), encoder.abstract_params()
    )


def test_a_tied_module():
    encoder = from_linen(Tied())
    shape = jax.ShapeDtypeStruct((5, 4), jnp.float32)
    assert encoder.abstract_params() == {"words": {"embedding": shape}}
    expected = [[3.0] * 4, [2.0] * 4]
    np.testing.assert_array_equal(encoder.encode_queries(ones(encoder), IDS, MASK), expected)
    np.testing.assert_array_equal(encoder.encode_passages(ones(encoder), IDS, MASK), expected)


def test_two_methods_expect_the_union_of_their_trees():
    encoder = from_linen(Untied(), query_method="queries", passage_method="passages")
    tree = encoder.abstract_params()
    assert {name: sorted(leaves) for name, leaves in tree.items()} == {
        "words": ["embedding"],
        "query_head": ["bias", "kernel"],
        "passage_head": ["kernel"],
    }
    params = ones(encoder)
    np.testing.assert_array_equal(encoder.encode_queries(params, IDS, MASK)[0], [13, 13])
    np.testing.assert_array_equal(encoder.encode_passages(params, IDS, MASK)[0], [12, 12])


def test_boxes_of_a_trainer_are_taken_off():
    tree = from_linen(Boxed()).abstract_params()
    assert tree == from_linen(Tied()).abstract_params()


def test_it_runs_under_pmap():
    encoder = from_linen(Tied())
    devices = jax.devices()[:1]
    encode = jax.pmap(encoder.encode_passages, in_axes=(None, 0, 0), devices=devices)
    np.testing.assert_array_equal(encode(ones(encoder), IDS[None], MASK[None])[0, 1], [2] * 4)


def test_an_encoder_can_be_the_key_of_a_cache():
    encoder = FunctionEncoder(lambda p, i, m: i, lambda p, i, m: i, dict)
    assert {encoder: 1}[encoder] == 1


MODULE = """
from jaxval.encoders import adapter
from jaxval.encoders.adapter import FunctionEncoder
number = 3
def good():
    return FunctionEncoder(len, len, dict)
def raises():
    raise RuntimeError("no vocabulary\\nsecond line")
def incomplete():
    return object()
def uncalled():
    import flax.linen as nn
    return adapter.from_linen(nn.Dense)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with plug-ins, importable as with `python -m`."""
    (tmp_path / "plug_in.py").write_text(MODULE)
    (tmp_path / "needy.py").write_text("import a_library_that_is_not_there")
    (tmp_path / "broken.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("plug_in", "needy", "broken"):
        sys.modules.pop(name, None)


def test_a_factory_is_found_in_the_working_directory(here):
    assert load_factory("plug_in:good").abstract_params() == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("plug_in", "not of the form package.module:factory"),
        (":good", "not of the form"),
        ("not_there:good", "No module named 'not_there'"),
        ("needy:good", "No module named 'a_library_that_is_not_there'; install it"),
        ("broken:good", "importing broken raised SyntaxError"),
        (
            "plug_in:uncalled",
            "from_linen was given the class Dense: call it: from_linen(Dense())",
        ),
        ("plug_in:god", "has no 'god'; nearest: good"),
        ("plug_in:number", "is a int, not a function"),
        ("plug_in:raises", "raised RuntimeError: no vocabulary;"),
        ("plug_in:incomplete", "without encode_queries, encode_passages, abstract_params"),
    ],
)
def test_each_fault_is_one_line_with_a_remedy(here, spec, message):
    with pytest.raises(EncoderError, match="`encoder=") as caught:
        load_factory(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_instead_of_a_module_is_told_the_spelling():
    with pytest.raises(EncoderError, match=r"name the module, as in retriever:factory"):
        adapter.load_factory("/code/retriever.py:factory")


def traced(function, *, passages=None):
    shapes = {"w": jax.ShapeDtypeStruct((4,), "float32")}
    return adapter.FunctionEncoder(function, passages or function, lambda: shapes)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            lambda params, ids, mask: params["w"][None, None] * ids[..., None],
            r"\[2, 8, 4\].*is it pooled",
        ),
        (lambda params, ids, mask: (params["w"], mask), "gives a tuple, wanted one array"),
        (
            lambda params, ids, mask: params["nothing"],
            r"raised KeyError: 'nothing'",
        ),
    ],
)
def test_what_an_encoder_gives_is_checked_before_anything_is_encoded(function, said):
    with pytest.raises(EncoderError, match=said):
        adapter.check(traced(function), "--encoder=x:y")


def pools(states):
    return states["pooled"]


def test_the_users_own_part_of_the_traceback_is_its_note():
    with pytest.raises(EncoderError) as caught:
        adapter.check(traced(lambda params, ids, mask: pools(params)), "--encoder=x:y")
    (note,) = caught.value.__notes__
    assert note.splitlines()[-2].startswith(f'  File "{__file__}", line ')
    assert note.splitlines()[-2].endswith(", in pools")
    assert note.splitlines()[-1] == '    return states["pooled"]'
    assert note.count("  File ") == 2  # neither JAX's nor jaxval's
    assert "\n" not in str(caught.value)


def test_a_syntax_error_is_shown_where_it_stands(here):
    with pytest.raises(EncoderError) as caught:
        load_factory("broken:good")
    assert "install it" not in str(caught.value)
    (note,) = caught.value.__notes__
    assert f'  File "{here / "broken.py"}", line 1' in note
    assert "    def f(:" in note


def test_towers_of_different_widths_cannot_be_compared():
    def wide(params, ids, mask):
        return jnp.zeros((ids.shape[0], 8))

    def narrow(params, ids, mask):
        return jnp.zeros((ids.shape[0], 4))

    with pytest.raises(EncoderError, match="8 components and passages 4"):
        adapter.check(traced(wide, passages=narrow), "--encoder=x:y")


class Flagged(nn.Module):
    @nn.compact
    def __call__(self, ids, mask, train):
        return nn.Embed(5, 4)(ids).sum(1)


class Normed(nn.Module):
    average: bool

    @nn.compact
    def __call__(self, ids, mask):
        return nn.BatchNorm(use_running_average=self.average)(nn.Embed(5, 4)(ids).sum(1))


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Flagged(), "'train'; from_linen passes ids and mask alone: .* FunctionEncoder"),
        (Normed(True), "passes the collection `params` alone: .*batch_stats .*not supported"),
        (Normed(False), "passes the collection `params` alone: .*batch_stats .*not supported"),
    ],
)
def test_what_from_linen_does_not_pass_is_said_with_the_remedy(module, said):
    with pytest.raises(EncoderError, match=said):
        adapter.check(from_linen(module), "--encoder=x:y")
