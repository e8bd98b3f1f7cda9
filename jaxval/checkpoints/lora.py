"""Checkpoints that hold low-rank adapters alone, merged into the base they were trained on.

As magix's `lora` item (github.com/luyug/magix, `lora.py`): below the path of each array that
is adapted, [..., in, out], stand two of [..., in, rank] and [..., rank, out]; their product,
times alpha / rank, is added to it. alpha is not saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import jax
import numpy as np

from jaxval.checkpoints.locate import FOUND, Leaves, Plan, place
from jaxval.checkpoints.towers import TIED, choose, spread
from jaxval.checkpoints.trees import KeyPath, Shapes, below, flatten, resolve
from jaxval.errors import CorruptError, MismatchError
from jaxval.records import Params, ParamsPaths

_NAMES = {"in_matrix": "out_matrix", "lora_a": "lora_b", "lora_A": "lora_B", "a": "b"}
"""What the two are called: in magix, in flax.nnx, elsewhere."""


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
      left: [..., in, rank].
      right: [..., rank, out].
    """

    left: KeyPath
    right: KeyPath
    rank: int


Found = Mapping[str, tuple[KeyPath, Mapping[KeyPath, Adapter]]]
"""Tower -> the subtree in which its adapters stand, and these by the leaf they change."""


def plan(base: Base, found: Shapes, asked: ParamsPaths = FOUND) -> Plan:
    """Finds the adapters of a checkpoint, to be merged into `base`.

    Raises:
      MismatchError: there are none for the encoder, or several sets of them.
    """
    wanted = flatten(base.params)
    chosen = find({path: leaf.shape for path, leaf in wanted.items()}, found, asked)
    if len(chosen) < (2 if asked.query else 1):
        raise MismatchError(
            "it holds no adapters (in_matrix and out_matrix, or their like) that fit the"
            " encoder's arrays: leave --base_params out, or name their subtree"
        )
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


def find(wanted: Shapes, found: Shapes, asked: ParamsPaths = FOUND) -> Found:
    """The adapters of a checkpoint.

    Raises:
      MismatchError: several subtrees hold adapters of the encoder.
    """
    factors = dict(_factors(found))

    @cache
    def inside(prefix: KeyPath) -> dict[KeyPath, Adapter]:
        pairs = {
            _changed(owner, wanted): pair for owner, pair in below(prefix, factors).items()
        }
        adapters = {
            leaf: _adapter(wanted[leaf], pair, found) for leaf, pair in pairs.items() if leaf
        }
        fitting = {leaf: adapter for leaf, adapter in adapters.items() if adapter is not None}
        return fitting if len(fitting) == len(adapters) else {}

    def fit(prefix: KeyPath) -> dict[KeyPath, Adapter] | None:
        within = any(inside(prefix[:length]) for length in range(len(prefix)))
        return None if within else inside(prefix) or None

    return choose(fit, factors, asked)


def refuse(wanted: Shapes, found: Shapes) -> None:
    """Raises MismatchError if a checkpoint holds adapters: whatever else it holds stands
    still while the training goes on."""
    if chosen := find(wanted, found):
        raise MismatchError(
            f"it holds adapters, under {place(chosen)}: name what they change with"
            " --base_params, and --lora_alpha; or --params_path, to do without them"
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


def _adapter(
    shape: tuple[int, ...], pair: tuple[KeyPath, KeyPath], found: Shapes
) -> Adapter | None:
    """The two in the order in which their product has the leaf's shape; None if in none."""
    for left, right in (pair, pair[::-1]):
        rank = found[left][-1] if found[left] else 0
        if len(shape) > 1 and (found[left], found[right]) == (
            (*shape[:-1], rank),
            (*shape[:-2], rank, shape[-1]),
        ):
            return Adapter(left, right, rank)
    return None


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
    change = (alpha / adapter.rank) * (left @ right)
    merged: np.ndarray = (leaf.astype(np.float32) + change).astype(leaf.dtype)
    return merged
