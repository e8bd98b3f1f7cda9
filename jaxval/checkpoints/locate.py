"""The search for an encoder's parameters in a checkpoint, by their structure."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxval.checkpoints import stacks
from jaxval.checkpoints.stacks import Source
from jaxval.checkpoints.towers import PASSAGE, QUERY, TIED, choose, is_moment, nodes, spread
from jaxval.checkpoints.trees import KeyPath, Shapes, below, flatten, parse, resolve, show
from jaxval.errors import CorruptError, MismatchError
from jaxval.records import Params, ParamsPaths

Leaves = Mapping[KeyPath, np.ndarray]
"""The arrays that were read, by their path in the checkpoint."""

Chosen = Mapping[str, tuple[KeyPath, Mapping[KeyPath, Source]]]
"""Tower -> the subtree chosen for it, and where each leaf of the encoder is in it."""

AUTO = ParamsPaths()
"""No path is given: the parameters are found by their structure."""

_LISTED = 5
_SETTINGS = {
    TIED: "params_path",
    QUERY: "query_params_path",
    PASSAGE: "passage_params_path",
}


@dataclass(frozen=True)
class Plan:
    """Which leaves of a checkpoint to read, and how to build the encoder's tree from them.

    Attributes:
      reads: The dtype of each leaf to read, by its path in the checkpoint.
      build: Builds the encoder's tree from the leaves; {"query": tree, "passage": tree} if
        `untied`.
      found_at: The subtree that contains the parameters, e.g. `default/params`.
      untied: Whether each tower has its own parameters.
      remarks: Notes for the user on how the parameters were found.
    """

    reads: Mapping[KeyPath, Any]
    build: Callable[[Leaves], Params]
    found_at: str
    untied: bool
    remarks: tuple[str, ...] = ()


def plan(abstract_params: Params, shapes: Shapes, paths: ParamsPaths = AUTO) -> Plan:
    """Finds the subtree of a checkpoint that has all leaves of the encoder, by their shapes.

    Args:
      abstract_params: The encoder's tree of jax.ShapeDtypeStruct.
      shapes: The shape of each leaf of the checkpoint, by path.
      paths: The subtrees that the user names.

    Raises:
      MismatchError: No subtree fits; or several fit, and their names do not determine which
        to take; or the subtree has more layers than the encoder, and the user did not name
        it.
    """
    specs = flatten(abstract_params)
    wanted = {path: tuple(spec.shape) for path, spec in specs.items()}
    require_named(shapes, paths)
    chosen = choose(_fitting(wanted, shapes), shapes, paths) or choose(
        _fitting(wanted, shapes, wrapped=True), shapes, paths
    )
    _require(chosen, wanted, shapes, paths)
    shallow = _shallow(chosen, shapes, paths)
    reads = {
        source.path: specs[path].dtype
        for _, sources in chosen.values()
        for path, source in sources.items()
    }

    def build(leaves: Leaves) -> Params:
        return spread(
            {
                tower: _assembled(abstract_params, sources, leaves)
                for tower, (_, sources) in chosen.items()
            }
        )

    remarks = (*shallow, *_unstacked(chosen), *_left_out(chosen, shapes))
    return Plan(reads, build, describe(chosen), TIED not in chosen, remarks)


def describe(chosen: Mapping[str, tuple[KeyPath, Any]]) -> str:
    """Returns the path of the chosen subtree, or of both with their towers."""
    if TIED in chosen:
        return show(chosen[TIED][0])
    return f"{show(chosen[QUERY][0])} (queries), {show(chosen[PASSAGE][0])} (passages)"


def _fitting(
    wanted: Shapes, shapes: Shapes, *, wrapped: bool = False
) -> Callable[[KeyPath], dict[KeyPath, Source] | None]:
    """Returns a function from a node to the sources of the wanted leaves below it.

    The function returns None if a wanted leaf is missing.
    """
    groups = stacks.groups(wanted)
    numbered = {
        path
        for group in groups
        for layer in range(group.count)
        for path in group.paths(layer).values()
    }
    unnumbered = wanted.keys() - numbered
    children = _children(shapes)

    def is_below(prefix: KeyPath, path: KeyPath) -> bool:
        return shapes.get(resolve((*prefix, *path), shapes)) == wanted[path]

    def fit(prefix: KeyPath) -> dict[KeyPath, Source] | None:
        if not all(is_below(prefix, path) for path in unnumbered):
            return None
        sources = {
            path: Source(resolve((*prefix, *path), shapes))
            for path in wanted
            if is_below(prefix, path)
        }
        for group in groups:
            if not sources.keys() >= set(group.paths(0).values()):
                sources |= stacks.unstack(group, prefix, shapes, children, wrapped=wrapped)
        return sources if wanted.keys() <= sources.keys() else None

    return fit


def _children(shapes: Shapes) -> Mapping[KeyPath, Sequence[str]]:
    """Returns the names directly below each node."""
    names: dict[KeyPath, dict[str, None]] = defaultdict(dict)
    for path in shapes:
        for depth, key in enumerate(path):
            names[path[:depth]][key] = None
    return {node: tuple(below) for node, below in names.items()}


def _assembled(
    abstract_params: Params, sources: Mapping[KeyPath, Source], leaves: Leaves
) -> Params:
    """Returns the tree of one tower.

    Raises:
      CorruptError: A leaf is missing or has another shape. In place of a missing leaf, Orbax
        returns the spec with which it was requested.
    """
    ordered = []
    for path, spec in flatten(abstract_params).items():
        array = leaves.get(sources[path].path)
        leaf = sources[path].take(array) if isinstance(array, np.ndarray) else None
        if leaf is None or leaf.shape != spec.shape:
            raise CorruptError(f"{show(path)} could not be read completely")
        ordered.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(abstract_params), ordered)


def _unstacked(chosen: Chosen) -> list[str]:
    """Returns a remark for each axis along which layers are stacked."""
    axes = {
        source.axis
        for _, sources in chosen.values()
        for source in sources.values()
        if source.layer is not None
    }
    return [f"its layers are stacked along axis {axis}" for axis in sorted(axes)]


def _left_out(chosen: Chosen, shapes: Shapes) -> list[str]:
    """Returns a remark on what is not read, such as heads, poolers and averaged parameters.

    It does not mention optimizer states and scalars.
    """
    read = {source.path for _, sources in chosen.values() for source in sources.values()}
    inner = {path[:length] for path in read for length in range(len(path) + 1)}
    outer = {
        path[: next(i for i in range(len(path) + 1) if path[:i] not in inner)]
        for path, shape in shapes.items()
        if shape and path not in read and not is_moment(path)
    }
    return [f"left out: {_listed(sorted(map(show, outer)))}"] if outer else []


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def require_named(shapes: Shapes, paths: ParamsPaths) -> None:
    """Raises MismatchError if a subtree that the user names is not in the checkpoint."""
    inner = {path[:length] for path in shapes for length in range(len(path))} | {()}
    named = {TIED: paths.tree, QUERY: paths.query, PASSAGE: paths.passage}
    for tower, path in named.items():
        if path is not None and parse(path) not in inner:
            raise MismatchError(
                f"`{_SETTINGS[tower]}={path}` is not in it; {_suggestion(path, inner)}"
            )


def _suggestion(path: str, inner: Collection[KeyPath]) -> str:
    """Returns the node that is spelled most like a path, preferring nodes of its depth."""
    depth = len(parse(path))
    for names in ([show(n) for n in inner if len(n) == depth], map(show, inner)):
        if near := difflib.get_close_matches(path, names, n=1):
            return f"nearest: {near[0]}"
    return f"at its root: {', '.join(sorted(show(node) for node in inner if len(node) == 1))}"


def _require(
    chosen: Mapping[str, Any], wanted: Shapes, shapes: Shapes, paths: ParamsPaths
) -> None:
    """Raises MismatchError if no subtree is chosen, or not each that the user names."""
    named = {QUERY: paths.query, PASSAGE: paths.passage}
    if paths.query is None or paths.passage is None:
        named = {TIED: paths.tree}
        if set(chosen) == {QUERY, PASSAGE}:
            return
    for tower, path in named.items():
        if tower not in chosen:
            raise MismatchError(_explain(wanted, shapes, path))


def _shallow(chosen: Chosen, shapes: Shapes, paths: ParamsPaths) -> list[str]:
    """Returns a remark on layers that are left out although layers like them are read.

    Raises:
      MismatchError: There are such layers, and the user names no path.
    """
    layers = [
        show(layer)
        for prefix, sources in chosen.values()
        for layer in stacks.dropped(prefix, [s.path for s in sources.values()], shapes)
    ]
    if layers and paths == AUTO:
        raise MismatchError(
            f"{_listed(layers)} would be left out, although layers like them are read: the"
            " encoder may have too few layers. Correct num_hidden_layers in `model`'s"
            f" config.json, or `encoder`; or accept it with {_settings(chosen)}"
        )
    return [f"the encoder lacks layers like those it reads: {_listed(layers)}"] * bool(layers)


def _settings(chosen: Chosen) -> str:
    """Returns the settings that name the chosen subtrees."""
    return " and ".join(
        f"`{setting}={show(chosen[tower][0])}`"
        for tower, setting in _SETTINGS.items()
        if tower in chosen
    )


def _explain(wanted: Shapes, shapes: Shapes, path: str | None) -> str:
    """Returns a message on the leaves that do not fit in a subtree, by default the nearest."""
    prefix = _nearest(wanted, shapes) if path is None else parse(path)
    subtree = below(prefix, shapes)
    misfits = [p for p, shape in wanted.items() if subtree.get(resolve(p, subtree)) != shape]
    faults = "; ".join(_fault(path, wanted[path], subtree) for path in misfits[:3])
    more = f"; and {len(misfits) - 3} more" if len(misfits) > 3 else ""
    scanned = stacks.near({p: wanted[p] for p in misfits}, subtree)
    return (
        f"the encoder's parameters are not in it: {len(misfits)} of {len(wanted)} leaves do not"
        f" fit under {show(prefix)}: {faults}{more}."
        f" Check `model` or `encoder`, or name the subtree with `params_path`"
        + ", or give the scanned module itself as `encoder`"
        * scanned
    )


def _nearest(wanted: Shapes, shapes: Shapes) -> KeyPath:
    """Returns the prefix below which most wanted paths exist; among equals, the shortest."""
    votes = dict.fromkeys(nodes(shapes) or [()], 0)
    for path in shapes:
        for length in range(len(path)):
            if path[:length] in votes:
                votes[path[:length]] += path[length:] in wanted
    return min(votes, key=lambda prefix: (-votes[prefix], len(prefix), prefix))


def _fault(path: KeyPath, shape: tuple[int, ...], subtree: Shapes) -> str:
    """Returns how a wanted leaf is missing from a subtree."""
    actual = subtree.get(resolve(path, subtree))
    if actual is not None:
        return f"{show(path)} is {list(actual)}, expected {list(shape)}"
    names = {show(other): other for other in subtree}
    close = difflib.get_close_matches(show(path), names, n=1, cutoff=0.3)
    nearest = f" (nearest: {close[0]} {list(subtree[names[close[0]]])})" if close else ""
    return f"{show(path)} {list(shape)} is missing{nearest}"
