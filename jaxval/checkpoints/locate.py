"""The search for an encoder's parameters in a checkpoint, by their structure alone."""

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
from jaxval.checkpoints.towers import PASSAGE, QUERY, TIED, choose, moments, nodes, spread
from jaxval.checkpoints.trees import KeyPath, Shapes, below, flatten, parse, resolve, show
from jaxval.errors import CorruptError, MismatchError
from jaxval.records import Params, ParamsPaths

Leaves = Mapping[KeyPath, np.ndarray]
"""What was read, by its path in the checkpoint."""

AUTO = ParamsPaths()
"""No path is named: all is found by structure."""

_LISTED = 5
_SETTINGS = {
    TIED: "params_path",
    QUERY: "query_params_path",
    PASSAGE: "passage_params_path",
}


@dataclass(frozen=True)
class Plan:
    """What to read of a checkpoint, and what to make of it.

    Attributes:
      reads: the leaves to read, by path in the checkpoint, and the dtype of each.
      build: makes the encoder's tree of them; {"query": tree, "passage": tree} if `untied`.
      found_at: where they stand, e.g. `default/params`.
      untied: whether each tower has a tree of its own.
      remarks: what a person should know of how they were found.
    """

    reads: Mapping[KeyPath, Any]
    build: Callable[[Leaves], Params]
    found_at: str
    untied: bool
    remarks: tuple[str, ...] = ()


def plan(abstract_params: Params, found: Shapes, asked: ParamsPaths = AUTO) -> Plan:
    """Finds the subtree of a checkpoint that has every leaf of the encoder in its shape.

    Args:
      abstract_params: the encoder's tree of jax.ShapeDtypeStruct.
      found: shapes by path, as the checkpoint has them.
      asked: the subtrees that the user names.

    Raises:
      MismatchError: no subtree fits; or several do, and cannot be told apart; or one has
        more layers than the encoder, and is not asked for.
    """
    wanted = flatten(abstract_params)
    shapes = {path: tuple(leaf.shape) for path, leaf in wanted.items()}
    require_asked(found, asked)
    chosen = choose(_fitting(shapes, found), found, asked) or choose(
        _fitting(shapes, found, wrapped=True), found, asked
    )
    _require(chosen, shapes, found, asked)
    shallow = _shallow(chosen, found, asked)
    reads = {
        source.path: wanted[path].dtype
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

    remarks = (*shallow, *_unstacked(chosen), *_left_out(chosen, found))
    return Plan(reads, build, place(chosen), TIED not in chosen, remarks)


def place(chosen: Mapping[str, tuple[KeyPath, Any]]) -> str:
    """Where they stand, in words."""
    if TIED in chosen:
        return show(chosen[TIED][0])
    return f"{show(chosen[QUERY][0])} (queries), {show(chosen[PASSAGE][0])} (passages)"


def _fitting(
    wanted: Shapes, found: Shapes, *, wrapped: bool = False
) -> Callable[[KeyPath], dict[KeyPath, Source] | None]:
    """What tells of each node where the wanted leaves stand below it, or that they do not."""
    groups = stacks.groups(wanted)
    numbered = {
        path
        for group in groups
        for layer in range(group.count)
        for path in group.paths(layer).values()
    }
    lone = wanted.keys() - numbered
    children = _children(found)

    def stands(path: KeyPath, prefix: KeyPath) -> bool:
        return found.get(resolve((*prefix, *path), found)) == wanted[path]

    def fit(prefix: KeyPath) -> dict[KeyPath, Source] | None:
        if not all(stands(path, prefix) for path in lone):
            return None
        sources = {
            path: Source(resolve((*prefix, *path), found))
            for path in wanted
            if stands(path, prefix)
        }
        for group in groups:
            if not sources.keys() >= set(group.paths(0).values()):
                sources |= stacks.unstack(group, prefix, found, children, wrapped=wrapped)
        return sources if wanted.keys() <= sources.keys() else None

    return fit


def _children(found: Shapes) -> Mapping[KeyPath, Sequence[str]]:
    """The names below each node."""
    names: dict[KeyPath, dict[str, None]] = defaultdict(dict)
    for path in found:
        for depth, key in enumerate(path):
            names[path[:depth]][key] = None
    return {node: tuple(below) for node, below in names.items()}


def _assembled(
    abstract_params: Params, sources: Mapping[KeyPath, Source], leaves: Leaves
) -> Params:
    """A tower's tree, each leaf checked: a lost one must not pass as its own spec."""
    ordered = []
    for path, spec in flatten(abstract_params).items():
        array = leaves.get(sources[path].path)
        leaf = sources[path].take(array) if isinstance(array, np.ndarray) else None
        if leaf is None or leaf.shape != spec.shape:
            raise CorruptError(f"{show(path)} could not be read whole")
        ordered.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(abstract_params), ordered)


def _unstacked(chosen: Mapping[str, tuple[KeyPath, dict[KeyPath, Source]]]) -> list[str]:
    axes = {
        source.axis
        for _, sources in chosen.values()
        for source in sources.values()
        if source.layer is not None
    }
    return [f"its layers are stacked along axis {axis}" for axis in sorted(axes)]


def _left_out(
    chosen: Mapping[str, tuple[KeyPath, dict[KeyPath, Source]]], found: Shapes
) -> list[str]:
    """What else there is, but for moments and counters: heads, a pooler, an average."""
    taken = {source.path for _, sources in chosen.values() for source in sources.values()}
    inner = {path[:length] for path in taken for length in range(len(path) + 1)}
    outer = {
        path[: next(i for i in range(len(path) + 1) if path[:i] not in inner)]
        for path, shape in found.items()
        if shape and path not in taken and not moments(path)
    }
    names = sorted(map(show, outer))
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return [f"left out: {', '.join(names[:_LISTED])}{more}"] if names else []


def require_asked(found: Shapes, asked: ParamsPaths) -> None:
    """Raises MismatchError if a subtree that is named is not in the checkpoint."""
    there = {path[:length] for path in found for length in range(len(path))} | {()}
    named = {TIED: asked.tree, QUERY: asked.query, PASSAGE: asked.passage}
    for tower, path in named.items():
        if path is not None and parse(path) not in there:
            raise MismatchError(
                f"`{_SETTINGS[tower]}={path}` is not in it; {_alike(path, there)}"
            )


def _alike(path: str, there: Collection[KeyPath]) -> str:
    """The node that is spelled most like a path, rather one as deep as it."""
    depth = len(parse(path))
    for names in ([show(n) for n in there if len(n) == depth], map(show, there)):
        if near := difflib.get_close_matches(path, names, n=1):
            return f"nearest: {near[0]}"
    return f"at its root: {', '.join(sorted(show(node) for node in there if len(node) == 1))}"


def _require(
    chosen: Mapping[str, Any], wanted: Shapes, found: Shapes, asked: ParamsPaths
) -> None:
    """Raises MismatchError unless the subtrees are there that were asked for."""
    named = {QUERY: asked.query, PASSAGE: asked.passage}
    if asked.query is None or asked.passage is None:
        named = {TIED: asked.tree}
        if set(chosen) == {QUERY, PASSAGE}:
            return
    for tower, path in named.items():
        if tower not in chosen:
            raise MismatchError(_explain(wanted, found, path))


def _shallow(
    chosen: Mapping[str, tuple[KeyPath, Mapping[KeyPath, Source]]],
    found: Shapes,
    asked: ParamsPaths,
) -> list[str]:
    """Names the layers that are left out beside others like them.

    Raises:
      MismatchError: there are some, and no path was named.
    """
    layers = [
        show(layer)
        for prefix, sources in chosen.values()
        for layer in stacks.dropped(prefix, [one.path for one in sources.values()], found)
    ]
    more = f" and {len(layers) - _LISTED} more" if len(layers) > _LISTED else ""
    listed = ", ".join(layers[:_LISTED]) + more
    if layers and asked == AUTO:
        raise MismatchError(
            f"{listed} would be left out, and layers like them are taken: is the encoder too"
            " shallow? Correct num_hidden_layers in `model`'s config.json, or `encoder`; or"
            f" accept it by {_naming(chosen)}"
        )
    return [f"the encoder lacks layers like those it takes: {listed}"] if layers else []


def _naming(chosen: Mapping[str, tuple[KeyPath, Any]]) -> str:
    """The flags that ask for just what was found."""
    return " and ".join(
        f"`{flag}={show(chosen[tower][0])}`"
        for tower, flag in _SETTINGS.items()
        if tower in chosen
    )


def _explain(wanted: Shapes, found: Shapes, path: str | None) -> str:
    """Names what is missing from the subtree that comes nearest, and what it has instead."""
    prefix = _nearest(wanted, found) if path is None else parse(path)
    there = below(prefix, found)
    misfits = [p for p, shape in wanted.items() if there.get(resolve(p, there)) != shape]
    faults = "; ".join(_fault(path, wanted[path], there) for path in misfits[:3])
    more = f"; and {len(misfits) - 3} more" if len(misfits) > 3 else ""
    scanned = stacks.near({p: wanted[p] for p in misfits}, there)
    return (
        f"the encoder's parameters are not there: {len(misfits)} of {len(wanted)} leaves do not"
        f" fit under {show(prefix)}: {faults}{more}."
        f" Check `model` or `encoder`, or name the subtree with `params_path`"
        + ", or give the scanned module itself as `encoder`"
        * scanned
    )


def _nearest(wanted: Shapes, found: Shapes) -> KeyPath:
    """The prefix under which most wanted paths exist; ties go to the shortest."""
    votes = dict.fromkeys(nodes(found) or [()], 0)
    for path in found:
        for length in range(len(path)):
            if path[:length] in votes:
                votes[path[:length]] += path[length:] in wanted
    return min(votes, key=lambda prefix: (-votes[prefix], len(prefix), prefix))


def _fault(path: KeyPath, shape: tuple[int, ...], there: Shapes) -> str:
    has = there.get(resolve(path, there))
    if has is not None:
        return f"{show(path)} is {list(has)}, wanted {list(shape)}"
    names = {show(other): other for other in there}
    close = difflib.get_close_matches(show(path), names, n=1, cutoff=0.3)
    nearest = f" (nearest: {close[0]} {list(there[names[close[0]]])})" if close else ""
    return f"{show(path)} {list(shape)} is missing{nearest}"
