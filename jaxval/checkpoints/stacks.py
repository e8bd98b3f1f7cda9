"""Layers that a checkpoint stacks in one array (`nn.scan`), for encoders that number them.

MaxText, T5X and the scanned models of magix save one array [layers, ...] or
[width, layers, ...] where the encoder expects `layer/0/...`, `layer/1/...` or `layers_0/...`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxval.checkpoints.towers import is_moment
from jaxval.checkpoints.trees import KeyPath, Shapes, below, resolve, show
from jaxval.errors import MismatchError

_NUMBERED = re.compile(r"^(?:(.*)_)?(\d+)$")
_AXES = (0, 1)


@dataclass(frozen=True)
class Source:
    """Where a leaf of the encoder is in a checkpoint.

    Attributes:
      path: The path of the array that contains it.
      layer: The index of the leaf along `axis`; None if the leaf is the whole array.
      axis: The axis along which layers are stacked.
    """

    path: KeyPath
    layer: int | None = None
    axis: int = 0

    def take(self, array: np.ndarray) -> np.ndarray:
        """Returns the leaf; a view of the array if that contains several layers."""
        if self.layer is None:
            return array
        layer: np.ndarray = array[(slice(None),) * self.axis + (self.layer,)]
        return layer


@dataclass(frozen=True)
class Group:
    """Sibling subtrees of equal structure, numbered from 0: the layers of an encoder.

    Attributes:
      parent: The path of the node that contains them.
      stem: The name before the number, as in `stem_0`; None if the names are numbers.
      count: The number of layers.
      leaves: The shape of each leaf in a layer, by path in the layer.
    """

    parent: KeyPath
    stem: str | None
    count: int
    leaves: Shapes

    def paths(self, layer: int) -> dict[KeyPath, KeyPath]:
        """Returns the leaves of a layer: path in the layer -> path in the tree."""
        name = str(layer) if self.stem is None else f"{self.stem}_{layer}"
        return {rest: (*self.parent, name, *rest) for rest in self.leaves}


def groups(wanted: Shapes) -> list[Group]:
    """Returns all groups of a tree, outer ones before inner ones."""
    members: dict[tuple[KeyPath, str | None], dict[int, dict[KeyPath, Any]]]
    members = defaultdict(lambda: defaultdict(dict))
    for path, shape in wanted.items():
        for depth, key in enumerate(path):
            if match := _NUMBERED.match(key):
                layers = members[path[:depth], match[1]]
                layers[int(match[2])][path[depth + 1 :]] = shape
    complete = [
        Group(parent, stem, len(layers), layers[0])
        for (parent, stem), layers in members.items()
        if set(layers) == set(range(len(layers)))
        and all(layer == layers[0] for layer in layers.values())
    ]
    return sorted(complete, key=lambda group: len(group.parent))


def dropped(prefix: KeyPath, read: Collection[KeyPath], shapes: Shapes) -> list[KeyPath]:
    """Returns the layers below `prefix` that are not read although a layer like them is.

    Args:
      prefix: The path of the subtree that was chosen.
      read: The paths of its leaves that are read.
      shapes: The shape of each leaf of the checkpoint, by path.
    """
    inside = [(*prefix, *path) for path in below(prefix, shapes)]
    used = _inner(prefix, read)
    siblings: dict[tuple[KeyPath, str | None], list[KeyPath]] = defaultdict(list)
    for node in used:
        if match := _NUMBERED.match(node[-1]):
            siblings[node[:-1], match[1]].append(node)
    alike = [
        node
        for node in _inner(prefix, inside) - used
        if (match := _NUMBERED.match(node[-1]))
        and any(
            below(node, shapes) == below(sibling, shapes)
            for sibling in siblings.get((node[:-1], match[1]), ())
        )
    ]
    return sorted(alike, key=lambda node: (node[:-1], len(node[-1]), node[-1]))


def _inner(prefix: KeyPath, paths: Collection[KeyPath]) -> set[KeyPath]:
    """Returns these paths and the nodes between `prefix` and them."""
    return {path[:n] for path in paths for n in range(len(prefix) + 1, len(path) + 1)}


def unstack(
    group: Group,
    prefix: KeyPath,
    shapes: Shapes,
    children: Mapping[KeyPath, Sequence[str]],
    *,
    wrapped: bool = False,
) -> dict[KeyPath, Source]:
    """Returns the sources of a group's leaves if they are stacked below `prefix`.

    Args:
      group: A group of the encoder's tree.
      prefix: The path of the subtree that is searched.
      shapes: The shape of each leaf of the checkpoint, by path.
      children: The names directly below each node of the checkpoint.
      wrapped: Whether there is one more name between the stack and the layer, as when the
        module given to nn.scan contains the layer.

    Returns:
      The source of each leaf, by path in the encoder's tree; empty if they are not stacked.

    Raises:
      MismatchError: The group fits two arrays, or two axes of one.
    """
    heads = list(_heads(group, prefix, children))
    if wrapped:
        heads = [(*head, name) for head in heads for name in children.get(head, ())]
    fits = [
        (head, axis)
        for head in dict.fromkeys(heads)
        for axis in _AXES
        if not is_moment(head) and _fits(group, head, axis, shapes)
    ]
    if len(fits) > 1:
        listed = ", ".join(f"{show(head)} along axis {axis}" for head, axis in fits)
        raise MismatchError(
            f"the {group.count} layers of {show(group.parent)} fit more than one stack:"
            f" {listed}. Give the scanned module itself as `encoder`"
        )
    return {
        path: Source(resolve((*head, *rest), shapes), layer, axis)
        for head, axis in fits
        for layer in range(group.count)
        for rest, path in group.paths(layer).items()
    }


def near(wanted: Shapes, shapes: Shapes) -> bool:
    """Returns whether `shapes` contain a stack of one of the wanted leaves, at any path."""
    by_name = defaultdict(set)
    for path, shape in shapes.items():
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
    """Yields where a stack may be.

    This is `layer`, `layer/*` or `*` for layers named `layer/0`, and `*` for `layer_0`.
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


def _fits(group: Group, head: KeyPath, axis: int, shapes: Shapes) -> bool:
    """Returns whether all leaves of a group are stacked along an axis below `head`."""
    return all(
        len(shape) >= axis
        and shapes.get(resolve((*head, *rest), shapes))
        == (*shape[:axis], group.count, *shape[axis:])
        for rest, shape in group.leaves.items()
    )
