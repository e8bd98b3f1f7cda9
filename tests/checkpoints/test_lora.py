import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxval.checkpoints import lora
from jaxval.checkpoints.lora import Base
from jaxval.checkpoints.restore import restore
from jaxval.errors import MismatchError
from jaxval.records import ParamsPaths
from tests.checkpoints.world import ABSTRACT, SHARDINGS, abstract, check_placed, only

RNG = np.random.default_rng(0)
WANTED = {("dense", "kernel"): (4, 6), ("dense", "bias"): (6,), ("heads", "kernel"): (4, 2, 3)}


def base(alpha=8.0, dtype="float32"):
    return Base(
        jax.tree.map(lambda spec: RNG.normal(size=spec.shape).astype(dtype), abstract(WANTED)),
        alpha,
    )


def adapters(*prefix, owner=("dense", "kernel"), names=("in_matrix", "out_matrix"), rank=2):
    """Returns the two factors for a kernel [4, 6]."""
    left, right = names
    return {
        (*prefix, *owner, left): RNG.normal(size=(4, rank)).astype("float32"),
        (*prefix, *owner, right): RNG.normal(size=(rank, 6)).astype("float32"),
    }


def shapes(leaves):
    return {path: leaf.shape for path, leaf in leaves.items()}


def merged(base, leaves, **paths):
    return lora.plan(base, shapes(leaves), ParamsPaths(**paths)).build(leaves)


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (("dense", "kernel"), ("in_matrix", "out_matrix")),  # magix
        (("dense", "kernel"), ("a", "b")),
        (("dense", "kernel"), ("lora_A", "lora_B")),
        (("dense",), ("lora_a", "lora_b")),  # nnx.LoRA beside the kernel
        (("dense", "lora"), ("lora_a", "lora_b")),  # nnx.LoRALinear
    ],
)
def test_the_product_times_alpha_by_rank_is_added(owner, names):
    before, leaves = base(alpha=8.0), adapters("lora", owner=owner, names=names)
    left, right = leaves.values()
    after = merged(before, leaves)
    np.testing.assert_allclose(
        after["dense"]["kernel"],
        before.params["dense"]["kernel"] + 8 / 2 * left @ right,
        rtol=1e-6,
    )
    for name, part in (("dense", "bias"), ("heads", "kernel")):
        assert after[name][part] is before.params[name][part]


def test_the_order_of_the_factors_follows_from_their_shapes():
    before, leaves = base(), adapters("lora", names=("b", "a"))  # lorax: w + b @ a
    left, right = leaves.values()
    np.testing.assert_allclose(
        merged(before, leaves)["dense"]["kernel"],
        before.params["dense"]["kernel"] + 4 * left @ right,
        rtol=1e-6,
    )


SQUARE = {("query", "kernel"): (6, 6), ("value", "kernel"): (6, 6)}
MIXED = SQUARE | {("up", "kernel"): (6, 8)}


def of_all(wanted, names, layout, rank=2):
    """Returns adapters of all kernels, and the changes of the kernels."""
    leaves, changes = {}, {}
    for owner, (inputs, outputs) in wanted.items():
        left, right = RNG.normal(size=(inputs, rank)), RNG.normal(size=(rank, outputs))
        kept = {"flax": (left, right), "torch": (left.T, right.T), "reversed": (right, left)}
        changes[owner] = left @ right
        for name, factor in zip(names, kept[layout], strict=True):
            leaves["lora", *owner, name] = factor.astype("float32")
    return leaves, changes


def zeros(wanted, alpha=2.0):
    return Base(jax.tree.map(lambda s: np.zeros(s.shape, "f4"), abstract(wanted)), alpha)


LORA = ("lora_A", "lora_B")


@pytest.mark.parametrize(
    ("wanted", "names", "layout"),
    [
        (MIXED, LORA, "flax"),
        (MIXED, LORA, "torch"),  # PEFT; the array that is not square tells the layout
        (MIXED, ("lora_down", "lora_up"), "torch"),
        (MIXED, ("A", "B"), "torch"),
        (MIXED, ("a", "b"), "reversed"),  # lorax
        (SQUARE, LORA, "flax"),
        (SQUARE, ("lora_down", "lora_up"), "flax"),
        (SQUARE, ("a", "b"), "flax"),
    ],
)
def test_a_set_of_adapters_is_read_in_the_layout_that_fits_all_of_it(wanted, names, layout):
    leaves, changes = of_all(wanted, names, layout)
    after = merged(zeros(wanted), leaves)
    for (layer, name), change in changes.items():
        np.testing.assert_allclose(after[layer][name], change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["torch", "reversed"])
def test_only_square_arrays_in_the_layout_of_peft_or_lorax_are_an_error(layout):
    leaves, _ = of_all(SQUARE, LORA, layout)
    with pytest.raises(MismatchError) as refused:
        merged(zeros(SQUARE), leaves)
    assert "lora/query/kernel/lora_A [2, 6] and lora/query/kernel/lora_B [6, 2]" in str(
        refused.value
    )
    assert "save them as lora_a [in, rank] and lora_b [rank, out]" in str(refused.value)


def test_adapters_in_different_layouts_are_an_error():
    leaves, _ = of_all({("up", "kernel"): (6, 8)}, LORA, "torch")
    leaves |= of_all({("down", "kernel"): (8, 6)}, LORA, "reversed")[0]
    wanted = {("up", "kernel"): (6, 8), ("down", "kernel"): (8, 6)}
    with pytest.raises(
        MismatchError, match=r"no adapters \(in_matrix and out_matrix, .*lora_up"
    ):
        merged(zeros(wanted), leaves)


def test_arrays_of_three_axes_are_adapted_along_the_last_two():
    before = base(alpha=1.0)
    left, right = (RNG.normal(size=shape).astype("float32") for shape in [(4, 2, 1), (4, 1, 3)])
    owner = ("lora", "heads", "kernel")
    after = merged(before, {(*owner, "in_matrix"): left, (*owner, "out_matrix"): right})
    np.testing.assert_allclose(
        after["heads"]["kernel"], before.params["heads"]["kernel"] + left * right, rtol=1e-6
    )


def test_the_sum_of_base_and_change_is_rounded_once():
    before = base(dtype=jnp.bfloat16)
    leaves = adapters("lora")
    left, right = leaves.values()
    expected = before.params["dense"]["kernel"].astype("float32") + 4 * left @ right
    np.testing.assert_array_equal(
        merged(before, leaves)["dense"]["kernel"], expected.astype(jnp.bfloat16)
    )


def test_the_plan_names_the_adapters_and_the_arrays_they_change():
    plan = lora.plan(
        base(), shapes(adapters("lora") | adapters("optimizer", "0", "mu", rank=2))
    )
    assert plan.found_at == "lora"
    assert plan.remarks == ("adapters of rank 2, merged into 1 of 3 arrays",)
    assert set(plan.reads) == set(adapters("lora"))


def test_two_towers_have_their_own_adapters():
    before = base()
    leaves = adapters("lora", "query") | adapters("lora", "passage")
    after = merged(before, leaves)
    assert set(after) == {"query", "passage"}
    assert after["query"]["heads"]["kernel"] is after["passage"]["heads"]["kernel"]
    assert not np.array_equal(
        after["query"]["dense"]["kernel"], after["passage"]["dense"]["kernel"]
    )
    swapped = merged(before, leaves, query="lora/passage", passage="lora/query")
    np.testing.assert_array_equal(
        swapped["query"]["dense"]["kernel"], after["passage"]["dense"]["kernel"]
    )


@pytest.mark.parametrize(
    "leaves",
    [
        {("params", "dense", "kernel"): np.zeros((4, 6))},
        adapters("lora", owner=("other", "kernel")),
        {path: leaf.T for path, leaf in adapters("lora").items()},
        adapters("optimizer", "0", "mu"),
    ],
)
def test_a_checkpoint_without_adapters_for_the_encoder_is_an_error(leaves):
    with pytest.raises(MismatchError, match="no adapters .* leave out `base_params`"):
        merged(base(), leaves)


def test_two_sets_of_adapters_are_listed():
    with pytest.raises(MismatchError, match="more than one subtree fits .* ema, lora"):
        merged(base(), adapters("lora") | adapters("ema"))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_what_magix_wrote_is_merged(layouts, sharding, devices):
    tree = jax.tree.map(lambda spec: np.ones(spec.shape, spec.dtype), ABSTRACT)
    restored = restore(
        only(layouts / f"magix_lora-{sharding}"), ABSTRACT, base=Base(tree, alpha=30)
    )
    assert restored.found_at == "lora"
    assert restored.items == {"lora"}
    product = np.full((16, 2), 0.5) @ np.arange(32.0).reshape(2, 16)
    expected = np.float32(1 + 30 / 2 * product)
    np.testing.assert_array_equal(restored.params["dense"]["kernel"], expected)
    assert restored.params["embed"]["embedding"] is tree["embed"]["embedding"]
    check_placed(restored.params, jax.devices()[:devices])


def test_the_error_for_adapters_without_a_base_names_the_settings(layouts):
    with pytest.raises(
        MismatchError, match="adapters, under lora: name the parameters .*`base_params`"
    ):
        restore(only(layouts / "magix_lora-fsdp"), ABSTRACT)
