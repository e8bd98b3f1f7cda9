"""Trees as flat dictionaries of paths, and the search for an encoder's parameters in one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from jaxval.errors import MismatchError

KeyPath = tuple[str, ...]

# Moments mirror the parameters leaf for leaf; what stands below these is never a candidate.
_OPTIMIZER = frozenset({"opt_state", "optimizer", "optimizer_state", "opt", "tx", "mu", "nu"})
_BOX = "value"  # nnx.State and nn.Partitioned add this last key


def flatten(tree: Any) -> dict[KeyPath, Any]:
    """Leaves by path; list and tuple positions become strings, as they do on disk."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(_key(entry) for entry in path): leaf for path, leaf in leaves}


def show(path: Iterable[str]) -> str:
    """A path as the flags spell it."""
    return "/".join(path) or "(root)"


def locate(
    wanted: Mapping[KeyPath, tuple[int, ...]],
    found: Mapping[KeyPath, tuple[int, ...]],
    params_path: str | None = None,
) -> dict[KeyPath, KeyPath]:
    """Finds the subtree of a checkpoint that has every wanted leaf in its shape.

    Args:
      wanted: shapes by path, as the encoder expects them.
      found: shapes by path, as the checkpoint has them.
      params_path: takes this subtree rather than searching, e.g. `default/ema_params`.

    Returns:
      The checkpoint's path of each wanted leaf.

    Raises:
      MismatchError: no subtree fits, or more than one does.
    """
    if params_path is not None:
        prefix = tuple(part for part in params_path.split("/") if part)
        fits = [prefix] if _fits(prefix, wanted, found) else []
    else:
        fits = [prefix for prefix in _prefixes(wanted, found) if _fits(prefix, wanted, found)]
    if not fits:
        raise MismatchError(_explain(wanted, found, params_path))
    if len(fits) > 1:
        listed = ", ".join(show(prefix) for prefix in fits)
        raise MismatchError(
            f"more than one subtree fits the encoder: {listed}."
            f" Choose one, e.g. --params_path={show(fits[0])}"
        )
    return {path: _resolve((*fits[0], *path), found) for path in wanted}


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _prefixes(wanted: Iterable[KeyPath], found: Iterable[KeyPath]) -> list[KeyPath]:
    """Where one wanted leaf, the longest path of all, stands in the checkpoint."""
    probe = max(wanted, key=len)
    bare = (path[:-1] if path[-1:] == (_BOX,) else path for path in found)
    ends = {path[: len(path) - len(probe)] for path in bare if path[-len(probe) :] == probe}
    return sorted(end for end in ends if not _OPTIMIZER.intersection(end))


def _resolve(path: KeyPath, found: Mapping[KeyPath, Any]) -> KeyPath:
    return path if path in found else (*path, _BOX)


def _fits(
    prefix: KeyPath,
    wanted: Mapping[KeyPath, tuple[int, ...]],
    found: Mapping[KeyPath, tuple[int, ...]],
) -> bool:
    return all(
        found.get(_resolve((*prefix, *path), found)) == shape for path, shape in wanted.items()
    )


def _explain(
    wanted: Mapping[KeyPath, tuple[int, ...]],
    found: Mapping[KeyPath, tuple[int, ...]],
    params_path: str | None,
) -> str:
    """Names what is missing from the subtree that comes nearest, and what it has instead."""
    prefix = (
        tuple(params_path.strip("/").split("/"))
        if params_path is not None
        else _nearest(wanted, found)
    )
    below = {
        path[len(prefix) :]: s for path, s in found.items() if path[: len(prefix)] == prefix
    }
    faults = [
        _fault(path, shape, below)
        for path, shape in wanted.items()
        if below.get(_resolve(path, below)) != shape
    ]
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return (
        f"the encoder's parameters are not there: {len(faults)} of {len(wanted)} leaves do not"
        f" fit under {show(prefix)}: {'; '.join(faults[:3])}{more}."
        " Check --model or --encoder, or name the subtree with --params_path"
    )


def _nearest(
    wanted: Mapping[KeyPath, tuple[int, ...]], found: Mapping[KeyPath, tuple[int, ...]]
) -> KeyPath:
    """The prefix under which most wanted paths exist; ties go to the shortest."""
    votes: dict[KeyPath, int] = {(): 0}
    for path in found:
        for length in range(len(path)):
            if not _OPTIMIZER.intersection(path[:length]):
                hit = path[length:] in wanted
                votes[path[:length]] = votes.get(path[:length], 0) + hit
    return min(votes, key=lambda prefix: (-votes[prefix], len(prefix), prefix))


def _fault(
    path: KeyPath, shape: tuple[int, ...], below: Mapping[KeyPath, tuple[int, ...]]
) -> str:
    there = below.get(_resolve(path, below))
    if there is not None:
        return f"{show(path)} is {list(there)}, wanted {list(shape)}"
    names = {show(other): other for other in below}
    close = difflib.get_close_matches(show(path), names, n=1, cutoff=0.3)
    nearest = f" (nearest: {close[0]} {list(below[names[close[0]]])})" if close else ""
    return f"{show(path)} {list(shape)} is missing{nearest}"
