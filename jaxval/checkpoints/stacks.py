"""Layers that a trainer keeps in one array (`nn.scan`), for an encoder that numbers them.

MaxText, T5X and magix's scanned models save one array [layers, ...], or [width, layers, ...],
where the encoder expects `layer/0/...`, `layer/1/...` or `layers_0/...`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxval.checkpoints.towers import moments
from jaxval.checkpoints.trees import KeyPath, Shapes, below, resolve, show
from jaxval.errors import MismatchError

_NUMBERED = re.compile(r"^(?:(.*)_)?(\d+)$")
_AXES = (0, 1)


@dataclass(frozen=True)
class Source:
    """Where a wanted leaf stands in a checkpoint.

    Attributes:
      path: of the array.
      layer: which slice of it along `axis`; None takes it whole.
    """

    path: KeyPath
    layer: int | None = None
    axis: int = 0

    def take(self, array: np.ndarray) -> np.ndarray:
        """The leaf, a view if it is one layer of many."""
        if self.layer is None:
            return array
        layer: np.ndarray = array[(slice(None),) * self.axis + (self.layer,)]
        return layer


@dataclass(frozen=True)
class Group:
    """Siblings that are numbered from 0 and alike: the layers of an encoder.

    Attributes:
      parent: where they stand.
      stem: of `stem_0`, `stem_1`; None if they are bare numbers.
      count: of layers.
      leaves: what each layer holds, by path within it.
    """

    parent: KeyPath
    stem: str | None
    count: int
    leaves: Shapes

    def paths(self, layer: int) -> dict[KeyPath, KeyPath]:
        """A layer's leaves: path within it -> path in the tree."""
        name = str(layer) if self.stem is None else f"{self.stem}_{layer}"
        return {rest: (*self.parent, name, *rest) for rest in self.leaves}


def groups(wanted: Shapes) -> list[Group]:
    """Every group of a tree, the outer ones first."""
    members: dict[tuple[KeyPath, str | None], dict[int, dict[KeyPath, Any]]]
    members = defaultdict(lambda: defaultdict(dict))
    for path, shape in wanted.items():
        for depth, key in enumerate(path):
            if match := _NUMBERED.match(key):
                layers = members[path[:depth], match[1]]
                layers[int(match[2])][path[depth + 1 :]] = shape
    found = [
        Group(parent, stem, len(layers), layers[0])
        for (parent, stem), layers in members.items()
        if set(layers) == set(range(len(layers)))
        and all(layer == layers[0] for layer in layers.values())
    ]
    return sorted(found, key=lambda group: len(group.parent))


def dropped(prefix: KeyPath, taken: Collection[KeyPath], found: Shapes) -> list[KeyPath]:
    """The layers below `prefix` that are left out, beside one like them that is taken.

    Args:
      prefix: of the subtree that was found; what stands beside it is no layer.
      taken: the leaves that are read of it.
      found: the checkpoint's shapes.
    """
    inside = [(*prefix, *path) for path in below(prefix, found)]
    used = _inner(prefix, taken)
    kin: dict[tuple[KeyPath, str | None], list[KeyPath]] = defaultdict(list)
    for node in used:
        if match := _NUMBERED.match(node[-1]):
            kin[node[:-1], match[1]].append(node)
    alike = [
        node
        for node in _inner(prefix, inside) - used
        if (match := _NUMBERED.match(node[-1]))
        and any(
            below(node, found) == below(other, found)
            for other in kin.get((node[:-1], match[1]), ())
        )
    ]
    return sorted(alike, key=lambda node: (node[:-1], len(node[-1]), node[-1]))


def _inner(prefix: KeyPath, paths: Collection[KeyPath]) -> set[KeyPath]:
    """The nodes and leaves below `prefix` on the way to these."""
    return {path[:n] for path in paths for n in range(len(prefix) + 1, len(path) + 1)}


def unstack(
    group: Group,
    prefix: KeyPath,
    found: Shapes,
    children: Mapping[KeyPath, Sequence[str]],
    *,
    wrapped: bool = False,
) -> dict[KeyPath, Source]:
    """Where a group's leaves stand if they are stacked below `prefix`; empty if they are not.

    Args:
      group: of the wanted tree.
      prefix: under which that tree is sought.
      found: the checkpoint's shapes.
      children: the names below each node of the checkpoint.
      wrapped: whether one more name stands between the stack and a layer's own, as where
        nn.scan was given a module that holds the layer.

    Raises:
      MismatchError: two arrays, or two axes, would do.
    """
    heads = list(_heads(group, prefix, children))
    if wrapped:
        heads = [(*head, name) for head in heads for name in children.get(head, ())]
    fits = [
        (head, axis)
        for head in dict.fromkeys(heads)
        for axis in _AXES
        if not moments(head) and _fits(group, head, axis, found)
    ]
    if len(fits) > 1:
        listed = ", ".join(f"{show(head)} along axis {axis}" for head, axis in fits)
        raise MismatchError(
            f"the {group.count} layers of {show(group.parent)} may be stacked in {listed}:"
            " which of them cannot be told; give the scanned module itself as `encoder`"
        )
    return {
        path: Source(resolve((*head, *rest), found), layer, axis)
        for head, axis in fits
        for layer in range(group.count)
        for rest, path in group.paths(layer).items()
    }


def near(wanted: Shapes, there: Shapes) -> bool:
    """Whether an array has all layers of one that is wanted, wherever it stands."""
    by_name = defaultdict(set)
    for path, shape in there.items():
        by_name[path[-1]].add(shape)
    return any(
        rest and (*shape[:axis], group.count, *shape[axis:]) in by_name[rest[-1]]
        for group in groups(wanted)
        for rest, shape in group.leaves.items()
        for axis in _AXES
        if len(shape) >= axis
    )


def _heads(
    group: Group, prefix: KeyPath, children: Mapping[KeyPath, Sequence[str]]
) -> Iterator[KeyPath]:
    """Where the stack may stand: for `layer/0` in `layer`, `layer/*` or `*`; for `layer_0`
    in `*`.
    """
    parent = (*prefix, *group.parent)
    nodes = [parent]
    if group.stem is None:
        yield parent
        nodes += [parent[:-1]] if group.parent else []
    for node in nodes:
        for name in children.get(node, ()):
            if (*node, name) != parent:
                yield (*node, name)


def _fits(group: Group, head: KeyPath, axis: int, found: Shapes) -> bool:
    return all(
        len(shape) >= axis
        and found.get(resolve((*head, *rest), found))
        == (*shape[:axis], group.count, *shape[axis:])
        for rest, shape in group.leaves.items()
    )
