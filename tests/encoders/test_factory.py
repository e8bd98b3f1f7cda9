import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxval.encoders import factory
from jaxval.encoders.adapter import FunctionEncoder, from_linen
from jaxval.encoders.factory import load_factory
from jaxval.errors import EncoderError

MODULE = """
from jaxval.encoders.adapter import FunctionEncoder, from_linen
number = 3
def good():
    return FunctionEncoder(len, len, dict)
def raises():
    raise RuntimeError("no vocabulary\\nsecond line")
def incomplete():
    return object()
def uncalled():
    import flax.linen as nn
    return from_linen(nn.Dense)
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


def test_a_factory_is_imported_from_the_working_directory(here):
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
            "from_linen was given the class Dense: pass an instance: from_linen(Dense())",
        ),
        ("plug_in:god", "has no 'god'; nearest: good"),
        ("plug_in:number", "is a int, not a function"),
        ("plug_in:raises", "raised RuntimeError: no vocabulary;"),
        ("plug_in:incomplete", "without encode_queries, encode_passages, abstract_params"),
    ],
)
def test_errors_have_one_line_with_a_remedy(here, spec, message):
    with pytest.raises(EncoderError, match="`encoder=") as caught:
        load_factory(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_error_for_a_file_shows_the_name_of_its_module():
    with pytest.raises(EncoderError, match=r"name the module, as in retriever:factory"):
        factory.load_factory("/code/retriever.py:factory")


def traced(function, *, passages=None):
    shapes = {"w": jax.ShapeDtypeStruct((4,), "float32")}
    return FunctionEncoder(function, passages or function, lambda: shapes)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda params, ids, mask: params["w"][None, None] * ids[..., None],
            r"\[2, 8, 4\].*pool the token states",
        ),
        (lambda params, ids, mask: (params["w"], mask), "returned a tuple; return one array"),
        (
            lambda params, ids, mask: params["nothing"],
            r"raised KeyError: 'nothing'",
        ),
    ],
)
def test_check_rejects_functions_that_do_not_return_vectors(function, message):
    with pytest.raises(EncoderError, match=message):
        factory.check(traced(function), "--encoder=x:y")


def pools(states):
    return states["pooled"]


def test_the_note_of_an_error_shows_only_the_users_code():
    with pytest.raises(EncoderError) as caught:
        factory.check(traced(lambda params, ids, mask: pools(params)), "--encoder=x:y")
    (note,) = caught.value.__notes__
    assert note.splitlines()[-2].startswith(f'  File "{__file__}", line ')
    assert note.splitlines()[-2].endswith(", in pools")
    assert note.splitlines()[-1] == '    return states["pooled"]'
    assert note.count("  File ") == 2  # neither JAX's nor jaxval's
    assert "\n" not in str(caught.value)


def test_the_note_of_a_syntax_error_shows_its_line(here):
    with pytest.raises(EncoderError) as caught:
        load_factory("broken:good")
    assert "install it" not in str(caught.value)
    (note,) = caught.value.__notes__
    assert f'  File "{here / "broken.py"}", line 1' in note
    assert "    def f(:" in note


def test_check_rejects_towers_with_different_widths():
    def wide(params, ids, mask):
        return jnp.zeros((ids.shape[0], 8))

    def narrow(params, ids, mask):
        return jnp.zeros((ids.shape[0], 4))

    with pytest.raises(EncoderError, match="8 components and those of passages 4"):
        factory.check(traced(wide, passages=narrow), "--encoder=x:y")


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
    ("module", "message"),
    [
        (Flagged(), "'train'; jaxval passes only ids and mask: .* `jaxval.FunctionEncoder`"),
        (Normed(True), "passes only the collection `params`.*not support .*batch_stats"),
        (Normed(False), "passes only the collection `params`.*not support .*batch_stats"),
    ],
)
def test_errors_due_to_limits_of_from_linen_have_a_remedy(module, message):
    with pytest.raises(EncoderError, match=message):
        factory.check(from_linen(module), "--encoder=x:y")


def digest_of(here, monkeypatch, source):
    """The digest of a plug-in whose module has this source."""
    (here / "plug_in.py").write_text(source)
    sys.modules.pop("plug_in", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(here)  # and makes Python list the folder again
    return factory.source_digest("plug_in:good")


def test_only_a_change_of_code_changes_the_digest_of_a_plug_in(here, monkeypatch):
    plain = digest_of(here, monkeypatch, MODULE)
    commented = MODULE.replace("number = 3", "\n# a comment\nnumber = 3  # another\n\n")
    assert digest_of(here, monkeypatch, commented) == plain
    described = MODULE.replace("def raises():", 'def raises():\n    """Raises."""')
    assert digest_of(here, monkeypatch, described) == plain
    changed = MODULE.replace("number = 3", "number = 4")
    assert digest_of(here, monkeypatch, changed) != plain
