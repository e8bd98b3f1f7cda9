"""The search by shapes; test_restore.py tests it with real files."""

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


def plan(checkpoint, wanted=WANTED, **paths):
    return locate.plan(abstract(wanted), checkpoint, ParamsPaths(**paths))


def values(checkpoint):
    """Returns random arrays of these shapes."""
    rng = np.random.default_rng(0)
    return {
        path: rng.normal(size=shape).astype("float32") for path, shape in checkpoint.items()
    }


def refusal(checkpoint, wanted=WANTED, **paths):
    with pytest.raises(MismatchError) as refused:
        plan(checkpoint, wanted, **paths)
    return str(refused.value)


@given(st.lists(st.text("abc", min_size=1, max_size=2), max_size=4), st.booleans())
def test_the_subtree_is_found_below_any_prefix_boxed_or_not(prefix, boxed):
    checkpoint = under(*prefix, box=("value",) if boxed else ())
    chosen = plan(checkpoint | {("step",): ()})
    assert set(chosen.reads) == set(checkpoint)
    assert chosen.found_at == ("/".join(prefix) or "(root)")
    assert not chosen.untied


@pytest.mark.parametrize(
    "moments",
    [("opt_state", "0", "mu"), ("optimizer", "nu"), ("mu",), ("optim", "0", "trace")],
)
def test_moments_are_never_chosen(moments):
    assert plan(under("params") | under(*moments)).found_at == "params"
    assert "3 of 3 leaves" in refusal(under(*moments))
    assert plan(under(*moments), tree="/".join(moments)).found_at == "/".join(moments)


@pytest.mark.parametrize("name", ["target", "model"])
def test_the_target_of_an_optimizer_is_not_a_moment(name):
    checkpoint = under("optimizer", name) | under("optimizer", "state", "param_states")
    assert plan(checkpoint).found_at == f"optimizer/{name}"


def test_two_candidates_are_listed_with_the_settings_to_choose():
    checkpoint = under("default", "params") | under("default", "ema_params")
    message = refusal(checkpoint)
    assert "default/ema_params, default/params. Choose one" in message
    assert (
        "`params_path=default/ema_params`, or one for each with `query_params_path`" in message
    )
    assert plan(checkpoint, tree="default/ema_params").found_at == "default/ema_params"


def test_the_error_for_a_wrong_shape_names_both_shapes():
    checkpoint = under("params") | {("params", "dense", "bias"): (32,)}
    assert "1 of 3 leaves do not fit under params: dense/bias is [32], exp" in refusal(
        checkpoint
    )


def test_the_error_for_a_missing_leaf_names_the_nearest_one():
    checkpoint = under("params")
    checkpoint["params", "dense", "kernels"] = checkpoint.pop(("params", "dense", "kernel"))
    assert "dense/kernel [16, 16] is missing (nearest: dense/kernels" in refusal(checkpoint)


def test_the_error_for_a_missing_path_names_the_nearest_one():
    checkpoint = under("default", "params") | under("default", "ema_params")
    assert refusal(checkpoint, tree="default/ema") == (
        "`params_path=default/ema` is not in it; nearest: default/ema_params"
    )
    assert refusal(checkpoint, query="default/parms", passage="default/params") == (
        "`query_params_path=default/parms` is not in it; nearest: default/params"
    )
    assert (
        refusal(checkpoint, tree="zzz")
        == "`params_path=zzz` is not in it; at its root: default"
    )


def test_heads_that_the_encoder_lacks_are_left_out_with_a_remark():
    heads = {("params", "pooler", "kernel"): (16, 16), ("params", "dense", "scale"): (1,)}
    chosen = plan(under("params") | heads | under("opt_state", "mu") | {("step",): ()})
    assert chosen.remarks == ("left out: params/dense/scale, params/pooler",)
    assert set(chosen.reads) == set(under("params"))


SHALLOW = {path: shape for path, shape in LAYERED.items() if "2" not in path}


def test_layers_that_the_encoder_lacks_are_an_error_unless_the_path_is_named():
    checkpoint = under("default", "params", wanted=LAYERED)
    message = refusal(checkpoint, SHALLOW)
    assert (
        "default/params/encoder/layer/2 would be left out, although layers like them" in message
    )
    assert message.endswith("or accept it with `params_path=default/params`")
    assert "Correct num_hidden_layers in `model`'s config.json, or `encoder`" in message
    chosen = plan(checkpoint, SHALLOW, tree="default/params")
    assert chosen.remarks == (
        "the encoder lacks layers like those it reads: default/params/encoder/layer/2",
        "left out: default/params/encoder/layer/2",
    )


def test_layers_with_a_stem_that_one_tower_lacks_are_an_error():
    def layers(count):
        return {(f"layers_{n}", "Dense_0", "kernel"): (4, 4) for n in range(count)}

    checkpoint = under("query", wanted=layers(2)) | under("passage", wanted=layers(12))
    message = refusal(checkpoint, layers(2))
    assert message.startswith("passage/layers_2, passage/layers_3, passage/")
    assert "passage/layers_6 and 5 more would be left out" in message
    assert message.endswith("`query_params_path=query` and `passage_params_path=passage`")
    assert plan(checkpoint, layers(2), query="query", passage="passage").untied


def test_numbered_heads_of_another_structure_are_not_layers():
    head = {("params", "dense_1", "kernel"): (16, 2), ("params", "dense_1", "bias"): (2,)}
    wanted = {("dense_0", "kernel"): (16, 16), ("dense_0", "bias"): (16,)}
    chosen = plan(under("params", wanted=wanted) | head, wanted)
    assert chosen.remarks == ("left out: params/dense_1",)


def test_what_is_outside_of_the_subtree_is_not_a_layer():
    others = {("models", "1", "embed", "table"): (8, 16)} | under("models", "mu", "2")
    assert plan(under("models", "0") | others).found_at == "models/0"


def test_a_backbone_is_found_beside_the_head_of_another_task():
    """The layout is that of FlaxBertForMaskedLM, with averaged parameters besides."""
    heads = {("params", "cls", "bias"): (64,), ("params", "cls", "dense", "kernel"): (16, 16)}
    checkpoint = under("params", "bert") | heads | under("ema", "bert")
    chosen = plan(checkpoint, tree="params")
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
def test_two_subtrees_with_known_names_are_the_towers(query, passage):
    checkpoint = under(*passage) | under(*query) | under("opt_state", "0", "mu", *query)
    chosen = plan(checkpoint)
    assert chosen.untied
    assert chosen.found_at == f"{'/'.join(query)} (queries), {'/'.join(passage)} (passages)"
    leaves = values(checkpoint)
    built = chosen.build(leaves)
    assert set(built) == {"query", "passage"}
    np.testing.assert_array_equal(
        built["query"]["dense"]["bias"], leaves[*query, "dense", "bias"]
    )
    np.testing.assert_array_equal(
        built["passage"]["embed"]["table"], leaves[*passage, "embed", "table"]
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("0",), ("1",)),
        (("params", "0"), ("params", "1")),
        (("teacher",), ("student",)),
        (("query",), ("question",)),
        (("query", "a"), ("passage", "b")),
    ],
)
def test_two_subtrees_with_other_names_are_an_error(first, second):
    checkpoint = under(*first) | under(*second)
    assert "more than one subtree fits" in refusal(checkpoint)
    paths = {"query": "/".join(second), "passage": "/".join(first)}
    assert (
        plan(checkpoint, **paths).found_at
        == f"{paths['query']} (queries), {paths['passage']} (passages)"
    )


def test_params_path_selects_two_of_four_subtrees():
    checkpoint = {}
    for tree in ("params", "ema_params"):
        checkpoint |= under("default", tree, "query") | under("default", tree, "passage")
    assert "default/ema_params/passage, default/ema_params/query, default/p" in refusal(
        checkpoint
    )
    chosen = plan(checkpoint, tree="default/ema_params")
    assert chosen.found_at.startswith(
        "default/ema_params/query (queries), default/ema_params/p"
    )


def test_a_tower_that_is_not_at_the_given_path_is_an_error():
    checkpoint = under("a") | under("b", "c")
    assert "3 of 3 leaves do not fit under b" in refusal(checkpoint, query="a", passage="b")


def stacked(head, axis, count=3):
    """Returns LAYERED as nn.scan stacks it, below `params`."""
    leaves = {("kernel",): (16, 8), ("bias",): (8,)}
    return {("params", "words"): (64, 16)} | {
        ("params", *head, *path): (*shape[:axis], count, *shape[axis:])
        for path, shape in leaves.items()
    }


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "head", [("encoder", "layer"), ("encoder", "layer", "blocks"), ("encoder", "ScanLayer_0")]
)
def test_stacked_layers_are_unstacked(head, axis):
    checkpoint = stacked(head, axis)
    chosen = plan(checkpoint, LAYERED)
    assert chosen.found_at == "params"
    assert chosen.remarks == (f"its layers are stacked along axis {axis}",)
    leaves = values(checkpoint)
    for number, layer in chosen.build(leaves)["encoder"]["layer"].items():
        for name in ("kernel", "bias"):
            whole = leaves["params", *head, name]
            np.testing.assert_array_equal(layer[name], whole.take(int(number), axis))


def test_stacked_layers_with_a_stem_are_unstacked():
    wanted = {
        ("decoder", f"layers_{number}", "mlp", "kernel"): (4, 8) for number in range(2)
    } | {("decoder", "norm", "scale"): (4,)}
    checkpoint = {
        ("params", "decoder", "layers", "mlp", "kernel"): (4, 2, 8),
        ("params", "decoder", "norm", "scale"): (4,),
    }
    chosen = plan(checkpoint, wanted)
    leaves = values(checkpoint)
    built = chosen.build(leaves)["decoder"]
    whole = leaves["params", "decoder", "layers", "mlp", "kernel"]
    np.testing.assert_array_equal(built["layers_1"]["mlp"]["kernel"], whole[:, 1])


def test_a_stack_with_another_number_of_layers_does_not_fit():
    assert "encoder/layer/0/kernel [16, 8] is missing" in refusal(
        stacked(("encoder", "layer"), 0, count=4), LAYERED
    )


def test_a_stack_that_fits_along_two_axes_is_an_error():
    wanted = {("layer", str(number), "kernel"): (3, 5) for number in range(3)}
    checkpoint = {("layer", "kernel"): (3, 3, 5)}
    message = refusal(checkpoint, wanted)
    assert "fit more than one stack: layer along axis 0, layer along axis 1. Give" in message
    assert message.endswith("Give the scanned module itself as `encoder`")


def test_a_stack_below_a_wrapping_module_is_unstacked():
    checkpoint = {("params", *path): (2, *shape) for path, shape in BODY.items()}
    checkpoint[("params", "words")] = (8, 4)
    chosen = plan(checkpoint, BLOCKS)
    assert chosen.remarks == ("its layers are stacked along axis 0",)
    leaves = values(checkpoint)
    built = chosen.build(leaves)
    whole = leaves["params", "layers", "layer", "Dense_0", "kernel"]
    np.testing.assert_array_equal(built["layers_1"]["Dense_0"]["kernel"], whole[1])


BODY = {("layers", "layer", "Dense_0", "kernel"): (4, 4)}
BLOCKS = {(f"layers_{n}", "Dense_0", "kernel"): (4, 4) for n in range(2)} | {("words",): (8, 4)}


def test_two_stacks_below_wrapping_modules_are_an_error():
    checkpoint = {("layers", name, "Dense_0", "kernel"): (2, 4, 4) for name in ("a", "b")}
    message = refusal(checkpoint | {("words",): (8, 4)}, BLOCKS)
    assert "layers/a along axis 0, layers/b along axis 0" in message


def test_the_error_for_a_deeper_stack_suggests_the_scanned_module():
    checkpoint = {("layers", "a", "b", "Dense_0", "kernel"): (2, 4, 4), ("words",): (8, 4)}
    assert refusal(checkpoint, BLOCKS).endswith(
        ", or give the scanned module itself as `encoder`"
    )
    checkpoint = {("layers", "a", "b", "Dense_0", "kernel"): (3, 4, 4), ("words",): (8, 4)}
    assert refusal(checkpoint, BLOCKS).endswith("or name the subtree with `params_path`")


def test_stacked_moments_are_not_layers():
    checkpoint = {
        (*path[:-1], "mu", path[-1]): shape
        for path, shape in stacked(("encoder", "layer"), 0).items()
    }
    assert "the encoder's parameters are not in it" in refusal(checkpoint, LAYERED)


def test_the_stacks_of_both_towers_are_unstacked():
    checkpoint = {}
    for tower in ("query", "passage"):
        checkpoint |= {
            (tower, *path): shape for path, shape in stacked(("encoder", "x"), 0).items()
        }
    leaves = values(checkpoint)
    built = plan(checkpoint, LAYERED).build(leaves)
    for tower, tree in built.items():
        np.testing.assert_array_equal(
            tree["encoder"]["layer"]["2"]["bias"],
            leaves[tower, "params", "encoder", "x", "bias"][2],
        )
