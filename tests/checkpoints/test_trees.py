import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.checkpoints.trees import flatten, locate
from jaxval.errors import MismatchError

WANTED = {("embed", "table"): (64, 16), ("dense", "kernel"): (16, 16), ("dense", "bias"): (16,)}


def below(*prefix, box=()):
    return {(*prefix, *path, *box): shape for path, shape in WANTED.items()}


def test_flatten_spells_every_kind_of_key():
    assert flatten({"a": [1, {"b": 2}], "c": (3,)}) == {
        ("a", "0"): 1,
        ("a", "1", "b"): 2,
        ("c", "0"): 3,
    }


@given(st.lists(st.text("abc", min_size=1, max_size=2), max_size=4), st.booleans())
def test_the_subtree_is_found_below_any_prefix_boxed_or_not(prefix, boxed):
    found = below(*prefix, box=("value",) if boxed else ()) | {("step",): ()}
    located = locate(WANTED, found)
    assert set(located) == set(WANTED)
    assert all(found[place] == WANTED[path] for path, place in located.items())


@pytest.mark.parametrize("moments", [("opt_state", "0", "mu"), ("optimizer", "nu"), ("mu",)])
def test_moments_are_never_taken(moments):
    assert locate(WANTED, below("params") | below(*moments))["dense", "bias"][0] == "params"
    with pytest.raises(MismatchError):
        locate(WANTED, below(*moments))


def test_two_candidates_are_listed_with_the_flag_to_choose():
    found = below("default", "params") | below("default", "ema_params")
    with pytest.raises(MismatchError, match=r"ema_params, default/params.*--params_path=def"):
        locate(WANTED, found)
    chosen = locate(WANTED, found, params_path="default/ema_params")
    assert chosen["dense", "bias"] == ("default", "ema_params", "dense", "bias")


def test_a_shape_that_differs_is_named_with_both():
    found = below("params") | {("params", "dense", "bias"): (32,)}
    with pytest.raises(
        MismatchError, match=r"1 of 3 .*under params: dense/bias is \[32\], wan"
    ):
        locate(WANTED, found)


def test_a_missing_leaf_is_named_with_the_nearest_there_is():
    found = below("params")
    found[("params", "dense", "kernels")] = found.pop(("params", "dense", "kernel"))
    with pytest.raises(MismatchError, match=r"dense/kernel \[16, 16\] is missing .*kernels"):
        locate(WANTED, found)


def test_a_params_path_that_is_not_there_says_so():
    with pytest.raises(MismatchError, match="3 of 3 leaves do not fit under default/model"):
        locate(WANTED, below("default", "params"), params_path="default/model")
