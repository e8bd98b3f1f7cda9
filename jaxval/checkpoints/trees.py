"""Conversion of trees to flat dictionaries by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax

KeyPath = tuple[str, ...]
Shapes = Mapping[KeyPath, tuple[int, ...]]

_BOX = "value"  # the last key of a leaf that nnx.State or nn.Partitioned boxes


def flatten(tree: Any) -> dict[KeyPath, Any]:
    """Returns the leaves by path; positions in lists and tuples become strings, as on disk."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(_key(entry) for entry in path): leaf for path, leaf in leaves}


def show(path: Iterable[str]) -> str:
    """Returns a path as a string, as settings spell it."""
    return "/".join(path) or "(root)"


def parse(path: str) -> KeyPath:
    """Returns the path that a string of `show` spells."""
    return tuple(part for part in path.split("/") if part not in ("", "(root)"))


def resolve(path: KeyPath, leaves: Mapping[KeyPath, Any]) -> KeyPath:
    """Returns the path of a leaf in `leaves`, where it may be boxed."""
    return path if path in leaves else (*path, _BOX)


def below(prefix: KeyPath, leaves: Mapping[KeyPath, Any]) -> dict[KeyPath, Any]:
    """Returns the leaves below `prefix`, by their path from there."""
    length = len(prefix)
    return {path[length:]: leaf for path, leaf in leaves.items() if path[:length] == prefix}


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
