"""Which subtrees of a checkpoint are taken: one for both towers, or one for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from jaxval.checkpoints.trees import KeyPath, parse, show
from jaxval.errors import MismatchError
from jaxval.records import ParamsPaths

Fit = TypeVar("Fit")

TIED, QUERY, PASSAGE = "", "query", "passage"
"""What a subtree is for: both towers, or one of them."""

# Moments mirror the parameters leaf for leaf; what stands below these is never a candidate.
_OPTIMIZER = frozenset(
    "opt opt_state opt_states optim optimizer optimizer_state optimizer_states tx"
    " inner_opt_state param_states mu nu trace acc_grads".split()
)
# Where flax.optim and old T5X, and nnx.Optimizer before flax 0.11, kept the parameters.
_TARGETS = {("optimizer", "target"), ("optimizer", "model")}
_QUERIES = frozenset("q query queries question questions".split())
_PASSAGES = frozenset(
    "p passage passages doc docs document documents context contexts ctx corpus".split()
)
_KINDS = ("_encoder", "_tower", "_model", "_params")
_DUAL = ("params", "params")  # tevax: DualParams, of which 0 is the query's


def choose(
    fit: Callable[[KeyPath], Fit | None], paths: Iterable[KeyPath], asked: ParamsPaths
) -> dict[str, tuple[KeyPath, Fit]]:
    """The subtrees that fit: under TIED, or under QUERY and PASSAGE; empty if none does.

    Args:
      fit: what makes a subtree, by its path, what is sought; None if it is not.
      paths: the checkpoint's leaves.
      asked: the subtrees that the user names.

    Raises:
      MismatchError: several fit, and their names do not tell what they are for.
    """
    if asked.query is not None and asked.passage is not None:
        named = {QUERY: parse(asked.query), PASSAGE: parse(asked.passage)}
        both = {tower: (path, fit(path)) for tower, path in named.items()}
        return {tower: (p, it) for tower, (p, it) in both.items() if it is not None}
    candidates = nodes(paths) if asked.tree is None else _within(parse(asked.tree), paths)
    fits = {path: it for path in candidates if (it := fit(path)) is not None}
    if asked.tree is not None and (exact := parse(asked.tree)) in fits:
        fits = {exact: fits[exact]}
    return {tower: (path, fits[path]) for tower, path in _told(list(fits)).items()}


def nodes(paths: Iterable[KeyPath]) -> list[KeyPath]:
    """Every node of a checkpoint that is no optimizer's."""
    found = {path[:length] for path in paths for length in range(len(path))}
    return sorted(node for node in found if not moments(node))


def moments(path: KeyPath) -> bool:
    """Whether an optimizer's state stands there."""
    return any(
        key in _OPTIMIZER and (key, following) not in _TARGETS
        for key, following in pairwise((*path, ""))
    )


def _within(prefix: KeyPath, paths: Iterable[KeyPath]) -> list[KeyPath]:
    """`prefix`, and what stands below it that is no optimizer's."""
    inside = [path[len(prefix) :] for path in paths if path[: len(prefix)] == prefix]
    return [(*prefix, *node) for node in nodes(inside)] or [prefix]


def _told(fits: Sequence[KeyPath]) -> dict[str, KeyPath]:
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


def _pair(one: KeyPath, other: KeyPath) -> dict[str, KeyPath]:
    """Which of two is the query's, by the one name in which they differ."""
    differing = [i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
    if len(one) != len(other) or len(differing) != 1:
        return {}
    place = differing[0]
    kinds = {_tower(path[:place], path[place]): path for path in (one, other)}
    return kinds if set(kinds) == {QUERY, PASSAGE} else {}


def _tower(parent: KeyPath, name: str) -> str:
    if parent[-2:] == _DUAL:
        return {"0": QUERY, "1": PASSAGE}.get(name, "")
    stem = name.lower()
    for kind in _KINDS:
        stem = stem.removesuffix(kind)
    return QUERY if stem in _QUERIES else PASSAGE if stem in _PASSAGES else ""


def spread(trees: Mapping[str, Any]) -> Any:
    """One tree of all that was chosen: the tied one itself, or {"query": …, "passage": …}."""
    return trees[TIED] if TIED in trees else dict(trees)
