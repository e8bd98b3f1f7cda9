"""The choice of subtrees in a checkpoint: one for both towers, or one for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from jaxval.checkpoints.trees import KeyPath, parse, show
from jaxval.errors import MismatchError
from jaxval.records import ParamsPaths

Fit = TypeVar("Fit")

TIED, QUERY, PASSAGE = "", "query", "passage"
"""The tower that a subtree is for; TIED means both."""

# Moments have the structure of the parameters. Nothing below these names is a candidate.
_OPTIMIZER = frozenset(
    "opt opt_state opt_states optim optimizer optimizer_state optimizer_states tx"
    " inner_opt_state param_states mu nu trace acc_grads".split()
)
# Where flax.optim, old T5X, and nnx.Optimizer before flax 0.11 keep the parameters.
_TARGETS = {("optimizer", "target"), ("optimizer", "model")}
_QUERIES = frozenset("q query queries question questions".split())
_PASSAGES = frozenset(
    "p passage passages doc docs document documents context contexts ctx corpus".split()
)
_KINDS = ("_encoder", "_tower", "_model", "_params")
_DUAL = ("params", "params")  # DualParams of tevax: 0 is for queries, 1 for passages


def choose(
    fit: Callable[[KeyPath], Fit | None], leaves: Iterable[KeyPath], paths: ParamsPaths
) -> dict[str, tuple[KeyPath, Fit]]:
    """Returns the subtrees that fit: one under TIED, or one each under QUERY and PASSAGE.

    Args:
      fit: Returns what it found in the subtree at a path, or None if that does not fit.
      leaves: The paths of the checkpoint's leaves.
      paths: The subtrees that the user names.

    Returns:
      Tower -> the path of its subtree, and what `fit` returned for it; empty if none fits.

    Raises:
      MismatchError: Several subtrees fit, and their names do not determine their towers.
    """
    if paths.query is not None and paths.passage is not None:
        named = {QUERY: parse(paths.query), PASSAGE: parse(paths.passage)}
        fits = {path: fitted for path in named.values() if (fitted := fit(path)) is not None}
        return {tower: (path, fits[path]) for tower, path in named.items() if path in fits}
    candidates = nodes(leaves) if paths.tree is None else _within(parse(paths.tree), leaves)
    fits = {path: fitted for path in candidates if (fitted := fit(path)) is not None}
    if paths.tree is not None and (exact := parse(paths.tree)) in fits:
        fits = {exact: fits[exact]}
    return {tower: (path, fits[path]) for tower, path in _towers(list(fits)).items()}


def nodes(leaves: Iterable[KeyPath]) -> list[KeyPath]:
    """Returns all nodes of a checkpoint outside of optimizer states."""
    inner = {path[:length] for path in leaves for length in range(len(path))}
    return sorted(node for node in inner if not is_moment(node))


def is_moment(path: KeyPath) -> bool:
    """Returns whether a path leads into an optimizer state."""
    return any(
        key in _OPTIMIZER and (key, following) not in _TARGETS
        for key, following in pairwise((*path, ""))
    )


def _within(prefix: KeyPath, leaves: Iterable[KeyPath]) -> list[KeyPath]:
    """Returns `prefix` and the nodes below it outside of optimizer states."""
    inside = [path[len(prefix) :] for path in leaves if path[: len(prefix)] == prefix]
    return [(*prefix, *node) for node in nodes(inside)] or [prefix]


def _towers(fits: Sequence[KeyPath]) -> dict[str, KeyPath]:
    """Returns the subtree of each tower.

    Args:
      fits: All subtrees that fit.

    Raises:
      MismatchError: There are several, and their names do not determine their towers.
    """
    if len(fits) <= 1:
        return dict.fromkeys((TIED,), fits[0]) if fits else {}
    if len(fits) == 2 and (pair := _pair(*fits)):
        return pair
    listed = ", ".join(map(show, fits))
    raise MismatchError(
        f"more than one subtree fits the encoder: {listed}. Choose one for both towers, e.g."
        f" `params_path={show(fits[0])}`, or one for each with `query_params_path` and"
        " `passage_params_path`"
    )


def _pair(first: KeyPath, second: KeyPath) -> dict[str, KeyPath]:
    """Returns the towers of two subtrees, by the one name in which their paths differ.

    The result is empty if that name does not determine them.
    """
    differing = [i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
    if len(first) != len(second) or len(differing) != 1:
        return {}
    depth = differing[0]
    pair = {_tower(path[:depth], path[depth]): path for path in (first, second)}
    return pair if set(pair) == {QUERY, PASSAGE} else {}


def _tower(parent: KeyPath, name: str) -> str:
    """Returns the tower that a name below `parent` means, or '' if it means none."""
    if parent[-2:] == _DUAL:
        return {"0": QUERY, "1": PASSAGE}.get(name, "")
    stem = name.lower()
    for kind in _KINDS:
        stem = stem.removesuffix(kind)
    return QUERY if stem in _QUERIES else PASSAGE if stem in _PASSAGES else ""


def spread(trees: Mapping[str, Any]) -> Any:
    """Returns the tree of both towers, or {"query": tree, "passage": tree}."""
    return trees[TIED] if TIED in trees else dict(trees)
