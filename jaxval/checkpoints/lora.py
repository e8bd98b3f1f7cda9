"""Checkpoints that contain only low-rank adapters, which are merged into base parameters.

The layout is that of magix's `lora` item (github.com/luyug/magix, `lora.py`). Below the path
of each adapted array, [..., in, out], there are two factors, [..., in, rank] and
[..., rank, out]. Their product times alpha / rank is added to the array. alpha is not saved.
Two other layouts are recognized by their shapes: [rank, in] and [out, rank] of PEFT, which is
PyTorch's, and [rank, out] and [in, rank] of lorax. For a square array these two have equal
shapes, so the other arrays of the set decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import jax
import numpy as np

from jaxval.checkpoints.locate import AUTO, Leaves, Plan, describe, require_named
from jaxval.checkpoints.towers import TIED, choose, spread
from jaxval.checkpoints.trees import KeyPath, Shapes, below, flatten, resolve, show
from jaxval.errors import CorruptError, MismatchError
from jaxval.records import Params, ParamsPaths

_NAMES = {
    "in_matrix": "out_matrix",  # magix
    "lora_a": "lora_b",  # flax.nnx
    "lora_A": "lora_B",  # PEFT
    "lora_down": "lora_up",
    "a": "b",  # lorax
    "A": "B",
}
"""The name of the first factor -> that of the second."""

_ONLY_FLAX = ("in_matrix", "lora_a")
"""First factors that are only written in Flax's layout."""

Layout = Literal["flax", "torch", "reversed"]
"""The shapes of the factors, in the order of their names: [in, rank] and [rank, out];
[rank, in] and [out, rank]; [rank, out] and [in, rank]."""


@dataclass(frozen=True, eq=False)
class Base:
    """The parameters that adapters change.

    Attributes:
      params: The encoder's tree in host memory.
      alpha: The product of an adapter's factors is scaled by alpha / rank.
    """

    params: Params
    alpha: float


@dataclass(frozen=True)
class Adapter:
    """Where the two factors of one array's change are in a checkpoint.

    Attributes:
      left: The path of the factor [..., in, rank]; [..., rank, in] if transposed.
      right: The path of the factor [..., rank, out]; [..., out, rank] if transposed.
      rank: The rank of their product.
      transposed: Whether both are in PyTorch's layout.
    """

    left: KeyPath
    right: KeyPath
    rank: int
    transposed: bool = False


Readings = Mapping[KeyPath, Mapping[Layout, Adapter]]
"""The adapters of a subtree by the leaf that they change, in each layout that fits them all."""


def plan(base: Base, shapes: Shapes, paths: ParamsPaths = AUTO) -> Plan:
    """Finds the adapters of a checkpoint, to be merged into `base`.

    Args:
      base: The parameters that they change.
      shapes: The shape of each leaf of the checkpoint, by path.
      paths: The subtrees that the user names.

    Raises:
      MismatchError: There are no adapters for the encoder, or several sets of them, or the
        shapes do not determine their layout.
    """
    require_named(shapes, paths)
    wanted = flatten(base.params)
    readings = find({path: leaf.shape for path, leaf in wanted.items()}, shapes, paths)
    if len(readings) < (2 if paths.query else 1):
        names = ", ".join(f"{first} and {second}" for first, second in _NAMES.items())
        raise MismatchError(
            f"it contains no adapters ({names}) that fit the encoder's arrays: leave out"
            " `base_params`, or name their subtree with `params_path`"
        )
    chosen = {
        tower: (prefix, _in_one_layout(prefix, adapters, shapes))
        for tower, (prefix, adapters) in readings.items()
    }
    pairs = [pair for _, adapters in chosen.values() for pair in adapters.values()]
    factors = [path for pair in pairs for path in (pair.left, pair.right)]

    def build(leaves: Leaves) -> Params:
        return spread(
            {tower: _merged(base, adapters, leaves) for tower, (_, adapters) in chosen.items()}
        )

    ranks = ", ".join(str(rank) for rank in sorted({pair.rank for pair in pairs}))
    adapted = len(next(iter(chosen.values()))[1])
    remark = f"adapters of rank {ranks}, merged into {adapted} of {len(wanted)} arrays"
    reads = dict.fromkeys(factors, np.float32)
    return Plan(reads, build, describe(chosen), TIED not in chosen, (remark,))


def find(
    wanted: Shapes, shapes: Shapes, paths: ParamsPaths = AUTO
) -> Mapping[str, tuple[KeyPath, Readings]]:
    """Finds the adapters of a checkpoint.

    Args:
      wanted: The shape of each leaf of the encoder, by path.
      shapes: The shape of each leaf of the checkpoint, by path.
      paths: The subtrees that the user names.

    Returns:
      Tower -> the subtree that contains its adapters, and the adapters.

    Raises:
      MismatchError: Several subtrees contain adapters for the encoder.
    """
    factors = dict(_factors(shapes))

    @cache
    def inside(prefix: KeyPath) -> Readings:
        pairs = {
            _adapted(owner, wanted): pair for owner, pair in below(prefix, factors).items()
        }
        return _agreeing(
            {
                leaf: _readings(wanted[leaf], pair, shapes)
                for leaf, pair in pairs.items()
                if leaf
            }
        )

    def fit(prefix: KeyPath) -> Readings | None:
        within = any(inside(prefix[:length]) for length in range(len(prefix)))
        return None if within else inside(prefix) or None

    return choose(fit, factors, paths)


def require_no_adapters(wanted: Shapes, shapes: Shapes) -> None:
    """Raises MismatchError if a checkpoint contains adapters.

    The other parameters in it do not change during training.
    """
    if chosen := find(wanted, shapes):
        raise MismatchError(
            f"it contains adapters, under {describe(chosen)}: name the parameters that they"
            " change with `base_params`, and `lora_alpha`; or ignore them with `params_path`"
        )


def _factors(shapes: Shapes) -> Iterator[tuple[KeyPath, tuple[KeyPath, KeyPath]]]:
    """Yields each node that contains the two factors of an adapter, and their paths."""
    for path in shapes:
        owner, name = path[:-1], path[-1]
        if name == "value" and owner:  # boxed
            owner, name = owner[:-1], owner[-1]
        second = resolve((*owner, _NAMES.get(name, "")), shapes)
        if second in shapes:
            yield owner, (path, second)


def _adapted(owner: KeyPath, wanted: Shapes) -> KeyPath:
    """Returns the leaf that an adapter below `owner` changes, or () if there is none.

    It is the leaf at `owner`, or the kernel of that layer.
    """
    layer = owner[:-1] if owner[-1:] == ("lora",) else owner  # nnx.LoRALinear
    return next((path for path in (owner, (*layer, "kernel")) if path in wanted), ())


def _readings(
    shape: tuple[int, ...], pair: tuple[KeyPath, KeyPath], shapes: Shapes
) -> dict[Layout, Adapter]:
    """Returns the layouts in which the product of two factors has the leaf's shape."""
    if len(shape) < 2 or min(len(shapes[path]) for path in pair) < 2:
        return {}
    (*outer, inputs, outputs), (first, second) = shape, pair
    before_last, last = shapes[first][-2:]  # one of them is the rank
    factors: dict[Layout, tuple[list[int], list[int]]] = {
        "flax": ([inputs, last], [last, outputs]),
        "torch": ([before_last, inputs], [outputs, before_last]),
        "reversed": ([before_last, outputs], [inputs, before_last]),
    }
    adapters: dict[Layout, Adapter] = {
        "flax": Adapter(first, second, last),
        "torch": Adapter(first, second, before_last, transposed=True),
        "reversed": Adapter(second, first, before_last),
    }
    return {
        layout: adapters[layout]
        for layout, (first_shape, second_shape) in factors.items()
        if (layout == "flax" or not set(_ONLY_FLAX) & set(first[-2:]))
        and (shapes[first], shapes[second]) == ((*outer, *first_shape), (*outer, *second_shape))
    }


def _agreeing(readings: Readings) -> Readings:
    """Returns the layouts that fit all adapters of a set; empty if there is none."""
    common = set.intersection(*map(set, readings.values())) if readings else set()
    if not common:
        return {}
    return {
        leaf: {layout: adapter for layout, adapter in layouts.items() if layout in common}
        for leaf, layouts in readings.items()
    }


def _in_one_layout(
    prefix: KeyPath, readings: Readings, shapes: Shapes
) -> dict[KeyPath, Adapter]:
    """Returns the adapters in the layout that fits; if several do, in Flax's.

    Raises:
      MismatchError: Every adapted array is square, and Flax's layout does not fit. PEFT's and
        lorax's then have equal shapes, but their products are each other's transpose.
    """
    layouts = next(iter(readings.values()))
    if len(layouts) > 1 and "flax" not in layouts:
        pair = layouts["torch"]
        first, second = (
            f"{show(path)} {list(shapes[path])}" for path in (pair.left, pair.right)
        )
        raise MismatchError(
            f"the adapters under {show(prefix)} change only square arrays, so the shapes of"
            f" {first} and {second} do not determine whether their layout is PEFT's ([rank, in]"
            " and [out, rank]) or lorax's ([rank, out] and [in, rank]); save them as lora_a"
            " [in, rank] and lora_b [rank, out]"
        )
    layout = "flax" if "flax" in layouts else next(iter(layouts))
    return {leaf: by_layout[layout] for leaf, by_layout in readings.items()}


def _merged(base: Base, adapters: Mapping[KeyPath, Adapter], leaves: Leaves) -> Params:
    """Returns the base's tree, in which new arrays replace those that are adapted."""
    tree = flatten(base.params)
    for path, adapter in adapters.items():
        tree[path] = _adapt(adapter, base.alpha, tree[path], leaves)
    return jax.tree.unflatten(jax.tree.structure(base.params), list(tree.values()))


def _adapt(adapter: Adapter, alpha: float, leaf: np.ndarray, leaves: Leaves) -> np.ndarray:
    """Returns an array of the base plus the scaled product of its adapter's factors."""
    left, right = leaves.get(adapter.left), leaves.get(adapter.right)
    if not isinstance(left, np.ndarray) or not isinstance(right, np.ndarray):
        raise CorruptError(f"the adapter {show(adapter.left)} could not be read completely")
    if adapter.transposed:
        left, right = left.swapaxes(-1, -2), right.swapaxes(-1, -2)
    change = (alpha / adapter.rank) * (left @ right)
    merged: np.ndarray = (leaf.astype(np.float32) + change).astype(leaf.dtype)
    return merged
