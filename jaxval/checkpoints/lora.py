"""Checkpoints that hold low-rank adapters alone, merged into the base they were trained on.

As magix's `lora` item (github.com/luyug/magix, `lora.py`): below the path of each array that
is adapted, [..., in, out], stand two of [..., in, rank] and [..., rank, out]; their product,
times alpha / rank, is added to it. alpha is not saved. Two other orders are known by their
shapes: PEFT's [rank, in] and [out, rank], as PyTorch keeps a layer, and lorax's [rank, out] and
[in, rank]. Those of a square array are alike, so the other arrays of a set decide for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import jax
import numpy as np

from jaxval.checkpoints.locate import AUTO, Leaves, Plan, place, require_asked
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
"""What the two are called."""

_FLAX_ALONE = ("in_matrix", "lora_a")
"""Whose writers keep them in Flax's order and no other."""

Layout = Literal["flax", "torch", "reversed"]
"""In which order the two stand, by shape: [in, rank] and [rank, out]; [rank, in] and
[out, rank]; [rank, out] and [in, rank]."""


@dataclass(frozen=True, eq=False)
class Base:
    """What adapters change.

    Attributes:
      params: the encoder's tree, in host memory.
      alpha: their product is scaled by alpha / rank.
    """

    params: Params
    alpha: float


@dataclass(frozen=True)
class Adapter:
    """Where the two factors of one array's change stand.

    Attributes:
      left: [..., in, rank]; [..., rank, in] if transposed.
      right: [..., rank, out]; [..., out, rank] if transposed.
      transposed: whether both are kept as PyTorch does.
    """

    left: KeyPath
    right: KeyPath
    rank: int
    transposed: bool = False


Readings = Mapping[KeyPath, Mapping[Layout, Adapter]]
"""The adapters of a subtree by the leaf they change, in each layout that fits them all."""

Found = Mapping[str, tuple[KeyPath, Readings]]
"""Tower -> the subtree in which its adapters stand, and these."""


def plan(base: Base, found: Shapes, asked: ParamsPaths = AUTO) -> Plan:
    """Finds the adapters of a checkpoint, to be merged into `base`.

    Raises:
      MismatchError: there are none for the encoder, or several sets of them, or they can
        be read in two ways.
    """
    require_asked(found, asked)
    wanted = flatten(base.params)
    readings = find({path: leaf.shape for path, leaf in wanted.items()}, found, asked)
    if len(readings) < (2 if asked.query else 1):
        names = ", ".join(f"{one} and {other}" for one, other in _NAMES.items())
        raise MismatchError(
            f"it holds no adapters ({names}) that fit the encoder's arrays: leave `base_params`"
            " out, or name their subtree"
        )
    chosen = {
        tower: (prefix, _settled(prefix, those, found))
        for tower, (prefix, those) in readings.items()
    }
    pairs = [pair for _, adapters in chosen.values() for pair in adapters.values()]
    reads = dict.fromkeys([at for pair in pairs for at in (pair.left, pair.right)], np.float32)

    def build(leaves: Leaves) -> Params:
        return spread(
            {tower: _merged(base, adapters, leaves) for tower, (_, adapters) in chosen.items()}
        )

    ranks = ", ".join(str(rank) for rank in sorted({pair.rank for pair in pairs}))
    adapted = len(next(iter(chosen.values()))[1])
    remark = f"adapters of rank {ranks}, merged into {adapted} of {len(wanted)} arrays"
    return Plan(reads, build, place(chosen), TIED not in chosen, (remark,))


def find(wanted: Shapes, found: Shapes, asked: ParamsPaths = AUTO) -> Found:
    """The adapters of a checkpoint.

    Raises:
      MismatchError: several subtrees hold adapters of the encoder.
    """
    factors = dict(_factors(found))

    @cache
    def inside(prefix: KeyPath) -> Readings:
        pairs = {
            _changed(owner, wanted): pair for owner, pair in below(prefix, factors).items()
        }
        return _agreeing(
            {leaf: _readings(wanted[leaf], pair, found) for leaf, pair in pairs.items() if leaf}
        )

    def fit(prefix: KeyPath) -> Readings | None:
        within = any(inside(prefix[:length]) for length in range(len(prefix)))
        return None if within else inside(prefix) or None

    return choose(fit, factors, asked)


def refuse(wanted: Shapes, found: Shapes) -> None:
    """Raises MismatchError if a checkpoint holds adapters: whatever else it holds stands
    still while the training goes on.
    """
    if chosen := find(wanted, found):
        raise MismatchError(
            f"it holds adapters, under {place(chosen)}: name what they change with"
            " `base_params`, and `lora_alpha`; or `params_path`, to do without them"
        )


def _factors(found: Shapes) -> Iterator[tuple[KeyPath, tuple[KeyPath, KeyPath]]]:
    """What has the two arrays of an adapter below it, and their paths."""
    for path in found:
        owner, name = path[:-1], path[-1]
        if name == "value" and owner:  # in a box
            owner, name = owner[:-1], owner[-1]
        other = resolve((*owner, _NAMES.get(name, "")), found)
        if other in found:
            yield owner, (path, other)


def _changed(owner: KeyPath, wanted: Shapes) -> KeyPath:
    """Which leaf its adapters change: itself, or a layer's kernel; empty if none."""
    layer = owner[:-1] if owner[-1:] == ("lora",) else owner  # nnx.LoRALinear
    return next((path for path in (owner, (*layer, "kernel")) if path in wanted), ())


def _readings(
    shape: tuple[int, ...], pair: tuple[KeyPath, KeyPath], found: Shapes
) -> dict[Layout, Adapter]:
    """The layouts in which the product of the two has the leaf's shape."""
    if len(shape) < 2 or min(len(found[path]) for path in pair) < 2:
        return {}
    (*outer, inputs, outputs), (first, second) = shape, pair
    narrow, wide = found[first][-1], found[first][-2]  # its rank, whichever it is
    shapes: dict[Layout, tuple[list[int], list[int]]] = {
        "flax": ([inputs, narrow], [narrow, outputs]),
        "torch": ([wide, inputs], [outputs, wide]),
        "reversed": ([wide, outputs], [inputs, wide]),
    }
    adapters: dict[Layout, Adapter] = {
        "flax": Adapter(first, second, narrow),
        "torch": Adapter(first, second, wide, transposed=True),
        "reversed": Adapter(second, first, wide),
    }
    return {
        layout: adapters[layout]
        for layout, (one, other) in shapes.items()
        if (layout == "flax" or not set(_FLAX_ALONE) & set(first[-2:]))
        and (found[first], found[second]) == ((*outer, *one), (*outer, *other))
    }


def _agreeing(readings: Readings) -> Readings:
    """A set has one layout: those alone that fit every pair of it; empty if none does."""
    common = set.intersection(*map(set, readings.values())) if readings else set()
    if not common:
        return {}
    return {
        leaf: {layout: adapter for layout, adapter in each.items() if layout in common}
        for leaf, each in readings.items()
    }


def _settled(prefix: KeyPath, readings: Readings, found: Shapes) -> dict[KeyPath, Adapter]:
    """The adapters in the one layout that they have, Flax's if that may be it.

    Raises:
      MismatchError: every array that they change is square, and the two are not in Flax's
        order: whether their product is to be transposed cannot be told.
    """
    layouts = next(iter(readings.values()))
    if len(layouts) > 1 and "flax" not in layouts:
        pair = layouts["torch"]
        one, other = (f"{show(at)} {list(found[at])}" for at in (pair.left, pair.right))
        raise MismatchError(
            f"the adapters under {show(prefix)} change square arrays alone: whether {one} and"
            f" {other} are PEFT's ([rank, in] and [out, rank]) or lorax's ([rank, out] and"
            " [in, rank]) cannot be told; save them as lora_a [in, rank] and lora_b [rank, out]"
        )
    layout = "flax" if "flax" in layouts else next(iter(layouts))
    return {leaf: each[layout] for leaf, each in readings.items()}


def _merged(base: Base, adapters: Mapping[KeyPath, Adapter], leaves: Leaves) -> Params:
    """The base's tree with new arrays where it is adapted, its own where it is not."""
    tree = flatten(base.params)
    for path, adapter in adapters.items():
        tree[path] = _changed_by(adapter, base.alpha, tree[path], leaves)
    return jax.tree.unflatten(jax.tree.structure(base.params), list(tree.values()))


def _changed_by(adapter: Adapter, alpha: float, leaf: np.ndarray, leaves: Leaves) -> np.ndarray:
    left, right = leaves.get(adapter.left), leaves.get(adapter.right)
    if not isinstance(left, np.ndarray) or not isinstance(right, np.ndarray):
        raise CorruptError(f"the adapter {'/'.join(adapter.left)} could not be read whole")
    if adapter.transposed:
        left, right = left.swapaxes(-1, -2), right.swapaxes(-1, -2)
    change = (alpha / adapter.rank) * (left @ right)
    merged: np.ndarray = (leaf.astype(np.float32) + change).astype(leaf.dtype)
    return merged
