"""What a checkpoint consists of, and how each kind of it is read: Orbax trees and msgpack.

The saved topology plays no part: every wanted leaf is asked for as a NumPy array, every
other leaf with a placeholder, so its bytes are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxval.checkpoints.trees import KeyPath, Shapes, below, flatten
from jaxval.errors import CorruptError

_TREE = "_METADATA"


class Item(Protocol):
    """One tree of a checkpoint."""

    @property
    def shapes(self) -> Shapes:
        """Its leaves' shapes."""
        ...

    def read(self, dtypes: Mapping[KeyPath, Any]) -> dict[KeyPath, np.ndarray]:
        """Some of its leaves, each in the dtype that is asked for."""
        ...


def items(root: epath.Path) -> dict[str, Item]:
    """The items of a checkpoint by name, '' being itself.

    Raises:
      CorruptError: there is none.
    """
    if root.is_file():
        return {"": LoadedItem(_msgpack(root))}
    if not is_tree(root):
        raise CorruptError(f"no {_TREE} in it or in its items: not an Orbax tree")
    return {name: OrbaxItem(root / name, _metadata(root / name)) for name in _names(root)}


def is_tree(root: epath.Path) -> bool:
    """Whether there is anything to read there."""
    return root.is_file() or bool(_names(root))


def _names(root: epath.Path) -> list[str]:
    own = [""] if (root / _TREE).exists() else []
    return own + sorted(
        child.name for child in root.iterdir() if child.is_dir() and (child / _TREE).exists()
    )


def shapes(found: Mapping[str, Item]) -> Shapes:
    """The leaves' shapes of all items, their names in front."""
    return {
        (*_parts(name), *path): shape
        for name, item in found.items()
        for path, shape in item.shapes.items()
    }


def read(found: Mapping[str, Item], dtypes: Mapping[KeyPath, Any]) -> dict[KeyPath, np.ndarray]:
    """Leaves of several items, by paths that begin with the item's name."""
    leaves: dict[KeyPath, np.ndarray] = {}
    for name, item in found.items():
        asked = {
            path: dtype
            for path, dtype in below(_parts(name), dtypes).items()
            if name or path[0] not in found
        }
        if asked:
            got = item.read(asked)
            leaves |= {(*_parts(name), *path): leaf for path, leaf in got.items()}
    return leaves


def read_from(found: Mapping[str, Item], paths: Mapping[KeyPath, Any]) -> frozenset[str]:
    """The items in which these leaves stand."""
    return frozenset(path[0] if path[0] in found else "" for path in paths)


def _parts(name: str) -> KeyPath:
    return (name,) if name else ()


@dataclass(frozen=True)
class OrbaxItem:
    """A directory that Orbax wrote, and its tree of metadata."""

    directory: epath.Path
    metadata: Any

    @property
    def shapes(self) -> Shapes:
        """Its leaves' shapes."""
        return {
            path: tuple(getattr(leaf, "shape", None) or ())
            for path, leaf in flatten(self.metadata).items()
        }

    def read(self, dtypes: Mapping[KeyPath, Any]) -> dict[KeyPath, np.ndarray]:
        """Some of its leaves, each in the dtype that is asked for."""
        leaves = flatten(self.metadata)
        structure = jax.tree.structure(self.metadata)
        arguments = ocp.args.PyTreeRestore(
            item=jax.tree.unflatten(structure, [_spec(at, leaves, dtypes) for at in leaves]),
            restore_args=jax.tree.unflatten(structure, [_how(at, dtypes) for at in leaves]),
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(self.directory, args=arguments)
        return {path: leaf for path, leaf in flatten(tree).items() if path in dtypes}


def _spec(path: KeyPath, leaves: Mapping[KeyPath, Any], dtypes: Mapping[KeyPath, Any]) -> Any:
    if path not in dtypes:
        return ocp.PLACEHOLDER
    return jax.ShapeDtypeStruct(leaves[path].shape, dtypes[path])


def _how(path: KeyPath, dtypes: Mapping[KeyPath, Any]) -> ocp.RestoreArgs:
    # Where old Orbax put some leaves into one file, placeholders are ignored and all are read:
    # also what is not wanted must not be asked for in the sharding in which it was saved.
    return ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtypes.get(path))


def _metadata(directory: epath.Path) -> Any:
    handler = ocp.PyTreeCheckpointHandler()
    try:
        return handler.metadata(directory).tree
    finally:
        handler.close()


@dataclass(frozen=True)
class LoadedItem:
    """A tree that is in memory already."""

    tree: Any

    @property
    def shapes(self) -> Shapes:
        """Its leaves' shapes."""
        return {path: np.shape(leaf) for path, leaf in flatten(self.tree).items()}

    def read(self, dtypes: Mapping[KeyPath, Any]) -> dict[KeyPath, np.ndarray]:
        """Some of its leaves, each in the dtype that is asked for."""
        leaves = flatten(self.tree)
        return {
            path: np.asarray(leaves[path]).astype(dtype, copy=False)
            for path, dtype in dtypes.items()
        }


def _msgpack(path: epath.Path) -> Any:
    """What flax.training.checkpoints wrote before it used Orbax: one file, read whole."""
    content = path.read_bytes()
    try:
        return flax.serialization.msgpack_restore(content)
    except MemoryError:
        raise
    except Exception as error:  # msgpack, NumPy and flax have each their own
        raise CorruptError(f"it cannot be read as msgpack: {error}") from error
