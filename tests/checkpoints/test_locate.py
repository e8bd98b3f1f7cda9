"""The search over shapes alone; what it finds in real files is test_restore's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.checkpoints import locate
from jaxval.errors import MismatchError
from jaxval.records import ParamsPaths
from tests.checkpoints.world import abstract

WANTED = {("embed", "table"): (64, 16), ("dense", "kernel"): (16, 16), ("dense", "bias"): (16,)}
LAYERED = {("words",): (64, 16)} | {
    ("encoder", "layer", str(number), *path): shape
    for number in range(3)
    for path, shape in {("kernel",): (16, 8), ("bias",): (8,)}.items()
}


def under(*prefix, box=(), wanted=WANTED):
    return {(*prefix, *path, *box): shape for path, shape in wanted.items()}


def plan(found, wanted=WANTED, **asked):
    return locate.plan(abstract(wanted), found, ParamsPaths(**asked))


def values(found):
    """Arrays of which no two are alike."""
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape).astype("float32") for path, shape in found.items()}


def refusal(found, wanted=WANTED, **asked):
    with pytest.raises(MismatchError) as refused:
        plan(found, wanted, **asked)
    return str(refused.value)


@given(st.lists(st.text("abc", min_size=1, max_size=2), max_size=4), st.booleans())
def test_the_subtree_is_found_below_any_prefix_boxed_or_not(prefix, boxed):
    found = under(*prefix, box=("value",) if boxed else ())
    chosen = plan(found | {("step",): ()})
    assert set(chosen.reads) == set(found)
    assert chosen.found_at == ("/".join(prefix) or "(root)")
    assert not chosen.untied


@pytest.mark.parametrize(
    "moments",
    [("opt_state", "0", "mu"), ("optimizer", "nu"), ("mu",), ("optim", "0", "trace")],
)
def test_moments_are_never_taken(moments):
    assert plan(under("params") | under(*moments)).found_at == "params"
    assert "3 of 3 leaves" in refusal(under(*moments))
    assert plan(under(*moments), tree="/".join(moments)).found_at == "/".join(moments)


@pytest.mark.parametrize("name", ["target", "model"])
def test_what_an_optimizer_optimizes_is_no_moment(name):
    found = under("optimizer", name) | under("optimizer", "state", "param_states")
    assert plan(found).found_at == f"optimizer/{name}"


def test_two_candidates_are_listed_with_the_flags_to_choose():
    found = under("default", "params") | under("default", "ema_params")
    said = refusal(found)
    assert "default/ema_params, default/params. Choose one" in said
    assert "`params_path=default/ema_params`, or one for each with `query_params_path`" in said
    assert plan(found, tree="default/ema_params").found_at == "default/ema_params"


def test_a_shape_that_differs_is_named_with_both():
    found = under("params") | {("params", "dense", "bias"): (32,)}
    assert "1 of 3 leaves do not fit under params: dense/bias is [32], exp" in refusal(found)


def test_a_missing_leaf_is_named_with_the_nearest_there_is():
    found = under("params")
    found["params", "dense", "kernels"] = found.pop(("params", "dense", "kernel"))
    assert "dense/kernel [16, 16] is missing (nearest: dense/kernels" in refusal(found)


def test_a_params_path_that_is_not_there_is_told_the_nearest():
    found = under("default", "params") | under("default", "ema_params")
    assert refusal(found, tree="default/ema") == (
        "`params_path=default/ema` is not in it; nearest: default/ema_params"
    )
    assert refusal(found, query="default/parms", passage="default/params") == (
        "`query_params_path=default/parms` is not in it; nearest: default/params"
    )
    assert refusal(found, tree="zzz") == "`params_path=zzz` is not in it; at its root: default"


def test_heads_that_the_encoder_lacks_are_left_out_and_said():
    heads = {("params", "pooler", "kernel"): (16, 16), ("params", "dense", "scale"): (1,)}
    chosen = plan(under("params") | heads | under("opt_state", "mu") | {("step",): ()})
    assert chosen.remarks == ("left out: params/dense/scale, params/pooler",)
    assert set(chosen.reads) == set(under("params"))


SHALLOW = {path: shape for path, shape in LAYERED.items() if "2" not in path}


def test_layers_that_the_encoder_lacks_are_an_error_unless_their_tree_is_named():
    found = under("default", "params", wanted=LAYERED)
    said = refusal(found, SHALLOW)
    assert "default/params/encoder/layer/2 would be left out, although layers like them" in said
    assert said.endswith("or accept it with `params_path=default/params`")
    assert "Correct num_hidden_layers in `model`'s config.json, or `encoder`" in said
    chosen = plan(found, SHALLOW, tree="default/params")
    assert chosen.remarks == (
        "the encoder lacks layers like those it reads: default/params/encoder/layer/2",
        "left out: default/params/encoder/layer/2",
    )


def test_layers_with_a_stem_and_those_of_one_tower_are_counted_too():
    def layers(count):
        return {(f"layers_{n}", "Dense_0", "kernel"): (4, 4) for n in range(count)}

    found = under("query", wanted=layers(2)) | under("passage", wanted=layers(12))
    said = refusal(found, layers(2))
    assert said.startswith("passage/layers_2, passage/layers_3, passage/")
    assert "passage/layers_6 and 5 more would be left out" in said
    assert said.endswith("`query_params_path=query` and `passage_params_path=passage`")
    assert plan(found, layers(2), query="query", passage="passage").untied


def test_numbered_heads_that_are_unlike_what_is_taken_are_no_layers():
    head = {("params", "dense_1", "kernel"): (16, 2), ("params", "dense_1", "bias"): (2,)}
    wanted = {("dense_0", "kernel"): (16, 16), ("dense_0", "bias"): (16,)}
    chosen = plan(under("params", wanted=wanted) | head, wanted)
    assert chosen.remarks == ("left out: params/dense_1",)


def test_what_stands_beside_the_found_tree_is_no_layer():
    others = {("models", "1", "embed", "table"): (8, 16)} | under("models", "mu", "2")
    assert plan(under("models", "0") | others).found_at == "models/0"


def test_a_backbone_is_found_beside_the_head_of_another_task():
    """As FlaxBertForMaskedLM keeps it; an average beside it is said too."""
    heads = {("params", "cls", "bias"): (64,), ("params", "cls", "dense", "kernel"): (16, 16)}
    found = under("params", "bert") | heads | under("ema", "bert")
    chosen = plan(found, tree="params")
    assert chosen.found_at == "params/bert"
    assert chosen.remarks == ("left out: ema, params/cls",)


TWINS = [
    (("params", "params", "0"), ("params", "params", "1")),
    (("model", "params", "params", "0"), ("model", "params", "params", "1")),
    (("query_encoder",), ("passage_encoder",)),
    (("params", "q_params"), ("params", "p_params")),
    (("question_model", "bert"), ("ctx_model", "bert")),
    (("queries",), ("documents",)),
    (("params", "query_tower"), ("params", "doc_tower")),
]


@pytest.mark.parametrize(("query", "passage"), TWINS)
def test_two_subtrees_whose_names_tell_are_the_towers(query, passage):
    found = under(*passage) | under(*query) | under("opt_state", "0", "mu", *query)
    chosen = plan(found)
    assert chosen.untied
    assert chosen.found_at == f"{'/'.join(query)} (queries), {'/'.join(passage)} (passages)"
    leaves = values(found)
    built = chosen.build(leaves)
    assert set(built) == {"query", "passage"}
    np.testing.assert_array_equal(
        built["query"]["dense"]["bias"], leaves[*query, "dense", "bias"]
    )
    np.testing.assert_array_equal(
        built["passage"]["embed"]["table"], leaves[*passage, "embed", "table"]
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("0",), ("1",)),
        (("params", "0"), ("params", "1")),
        (("teacher",), ("student",)),
        (("query",), ("question",)),
        (("query", "a"), ("passage", "b")),
    ],
)
def test_two_subtrees_whose_names_do_not_tell_are_an_error(one, other):
    found = under(*one) | under(*other)
    assert "more than one subtree fits" in refusal(found)
    paths = {"query": "/".join(other), "passage": "/".join(one)}
    assert (
        plan(found, **paths).found_at
        == f"{paths['query']} (queries), {paths['passage']} (passages)"
    )


def test_of_four_params_path_takes_the_two_below_it():
    found = {}
    for tree in ("params", "ema_params"):
        found |= under("default", tree, "query") | under("default", tree, "passage")
    assert "default/ema_params/passage, default/ema_params/query, default/p" in refusal(found)
    chosen = plan(found, tree="default/ema_params")
    assert chosen.found_at.startswith(
        "default/ema_params/query (queries), default/ema_params/p"
    )


def test_a_tower_that_is_not_where_it_is_said_to_be():
    found = under("a") | under("b", "c")
    assert "3 of 3 leaves do not fit under b" in refusal(found, query="a", passage="b")


def stacked(head, axis, count=3):
    """LAYERED as nn.scan would keep it, below `params`."""
    leaves = {("kernel",): (16, 8), ("bias",): (8,)}
    return {("params", "words"): (64, 16)} | {
        ("params", *head, *path): (*shape[:axis], count, *shape[axis:])
        for path, shape in leaves.items()
    }


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "head", [("encoder", "layer"), ("encoder", "layer", "blocks"), ("encoder", "ScanLayer_0")]
)
def test_layers_in_one_array_are_unstacked(head, axis):
    found = stacked(head, axis)
    chosen = plan(found, LAYERED)
    assert chosen.found_at == "params"
    assert chosen.remarks == (f"its layers are stacked along axis {axis}",)
    leaves = values(found)
    for number, layer in chosen.build(leaves)["encoder"]["layer"].items():
        for name in ("kernel", "bias"):
            whole = leaves["params", *head, name]
            np.testing.assert_array_equal(layer[name], whole.take(int(number), axis))


def test_layers_that_are_numbered_with_a_stem_are_unstacked_too():
    wanted = {
        ("decoder", f"layers_{number}", "mlp", "kernel"): (4, 8) for number in range(2)
    } | {("decoder", "norm", "scale"): (4,)}
    found = {
        ("params", "decoder", "layers", "mlp", "kernel"): (4, 2, 8),
        ("params", "decoder", "norm", "scale"): (4,),
    }
    chosen = plan(found, wanted)
    leaves = values(found)
    built = chosen.build(leaves)["decoder"]
    whole = leaves["params", "decoder", "layers", "mlp", "kernel"]
    np.testing.assert_array_equal(built["layers_1"]["mlp"]["kernel"], whole[:, 1])


def test_no_more_and_no_fewer_layers_than_the_encoder_has():
    assert "encoder/layer/0/kernel [16, 8] is missing" in refusal(
        stacked(("encoder", "layer"), 0, count=4), LAYERED
    )


def test_an_axis_that_cannot_be_told_is_an_error():
    wanted = {("layer", str(number), "kernel"): (3, 5) for number in range(3)}
    found = {("layer", "kernel"): (3, 3, 5)}
    said = refusal(found, wanted)
    assert "fit more than one stack: layer along axis 0, layer along axis 1. Give" in said
    assert said.endswith("Give the scanned module itself as `encoder`")


def test_a_body_that_wraps_the_layer_is_one_more_name():
    found = {("params", *path): (2, *shape) for path, shape in BODY.items()}
    found[("params", "words")] = (8, 4)
    chosen = plan(found, BLOCKS)
    assert chosen.remarks == ("its layers are stacked along axis 0",)
    leaves = values(found)
    built = chosen.build(leaves)
    whole = leaves["params", "layers", "layer", "Dense_0", "kernel"]
    np.testing.assert_array_equal(built["layers_1"]["Dense_0"]["kernel"], whole[1])


BODY = {("layers", "layer", "Dense_0", "kernel"): (4, 4)}
BLOCKS = {(f"layers_{n}", "Dense_0", "kernel"): (4, 4) for n in range(2)} | {("words",): (8, 4)}


def test_two_bodies_that_wrap_a_layer_cannot_be_told_apart():
    found = {("layers", name, "Dense_0", "kernel"): (2, 4, 4) for name in ("a", "b")}
    said = refusal(found | {("words",): (8, 4)}, BLOCKS)
    assert "layers/a along axis 0, layers/b along axis 0" in said


def test_a_stack_deeper_down_is_said_to_be_for_the_scanned_module():
    found = {("layers", "a", "b", "Dense_0", "kernel"): (2, 4, 4), ("words",): (8, 4)}
    assert refusal(found, BLOCKS).endswith(", or give the scanned module itself as `encoder`")
    found = {("layers", "a", "b", "Dense_0", "kernel"): (3, 4, 4), ("words",): (8, 4)}
    assert refusal(found, BLOCKS).endswith("or name the subtree with `params_path`")


def test_stacked_moments_are_no_layers():
    found = {
        (*path[:-1], "mu", path[-1]): shape
        for path, shape in stacked(("encoder", "layer"), 0).items()
    }
    assert "the encoder's parameters are not in it" in refusal(found, LAYERED)


def test_stacks_of_two_towers_are_each_the_right_one():
    found = {}
    for tower in ("query", "passage"):
        found |= {(tower, *path): shape for path, shape in stacked(("encoder", "x"), 0).items()}
    leaves = values(found)
    built = plan(found, LAYERED).build(leaves)
    for tower, tree in built.items():
        np.testing.assert_array_equal(
            tree["encoder"]["layer"]["2"]["bias"],
            leaves[tower, "params", "encoder", "x", "bias"][2],
        )
