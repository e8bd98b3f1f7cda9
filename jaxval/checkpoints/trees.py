"""Trees as flat dictionaries of paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax

KeyPath = tuple[str, ...]
Shapes = Mapping[KeyPath, tuple[int, ...]]

_BOX = "value"  # nnx.State and nn.Partitioned add this last key


def flatten(tree: Any) -> dict[KeyPath, Any]:
    """Leaves by path; list and tuple positions become strings, as they do on disk."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(_key(entry) for entry in path): leaf for path, leaf in leaves}


def show(path: Iterable[str]) -> str:
    """A path as the flags spell it."""
    return "/".join(path) or "(root)"


def parse(path: str) -> KeyPath:
    """What `show` spelled."""
    return tuple(part for part in path.split("/") if part not in ("", "(root)"))


def resolve(path: KeyPath, found: Mapping[KeyPath, Any]) -> KeyPath:
    """The path of a leaf as `found` has it: as it is, or in a box."""
    return path if path in found else (*path, _BOX)


def below(prefix: KeyPath, leaves: Mapping[KeyPath, Any]) -> dict[KeyPath, Any]:
    """The leaves under `prefix`, by what follows it."""
    length = len(prefix)
    return {path[length:]: leaf for path, leaf in leaves.items() if path[:length] == prefix}


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
