"""The items of a checkpoint, which are Orbax trees or one msgpack file, and how to read them.

The saved topology does not matter: wanted leaves are restored as NumPy arrays, and all other
leaves are replaced by placeholders, so their bytes are not read.
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
        """The shape of each leaf."""
        ...

    def read(self, dtypes: Mapping[KeyPath, Any]) -> dict[KeyPath, np.ndarray]:
        """Reads the leaves at the given paths, each in the given dtype."""
        ...


def open_items(root: epath.Path) -> dict[str, Item]:
    """Returns the items of a checkpoint by name; '' is the checkpoint's own directory.

    Raises:
      CorruptError: The checkpoint contains no tree.
    """
    if root.is_file():
        return {"": LoadedItem(_msgpack(root))}
    if not is_tree(root):
        raise CorruptError(
            f"it contains no Orbax tree (no {_TREE} in it or in its items); save the parameters"
            " with StandardSave or PyTreeSave"
        )
    return {name: OrbaxItem(root / name, _metadata(root / name)) for name in _names(root)}


def is_tree(root: epath.Path) -> bool:
    """Returns whether `root` is a file or contains an Orbax tree."""
    return root.is_file() or bool(_names(root))


def _names(root: epath.Path) -> list[str]:
    own = [""] if (root / _TREE).exists() else []
    return own + sorted(
        child.name for child in root.iterdir() if child.is_dir() and (child / _TREE).exists()
    )


def shapes(items: Mapping[str, Item]) -> Shapes:
    """Returns the shapes of all leaves, by paths that begin with the item's name."""
    return {
        (*_parts(name), *path): shape
        for name, item in items.items()
        for path, shape in item.shapes.items()
    }


def read(items: Mapping[str, Item], dtypes: Mapping[KeyPath, Any]) -> dict[KeyPath, np.ndarray]:
    """Reads leaves of several items, by paths that begin with the item's name.

    Args:
      items: By name.
      dtypes: The dtype of each leaf to read, by path.
    """
    leaves: dict[KeyPath, np.ndarray] = {}
    for name, item in items.items():
        wanted = {
            path: dtype
            for path, dtype in below(_parts(name), dtypes).items()
            if name or path[0] not in items
        }
        if wanted:
            values = item.read(wanted)
            leaves |= {(*_parts(name), *path): leaf for path, leaf in values.items()}
    return leaves


def read_from(items: Mapping[str, Item], paths: Mapping[KeyPath, Any]) -> frozenset[str]:
    """Returns the names of the items that contain the leaves at these paths."""
    return frozenset(path[0] if path[0] in items else "" for path in paths)


def _parts(name: str) -> KeyPath:
    return (name,) if name else ()


@dataclass(frozen=True)
class OrbaxItem:
    """A tree in a directory that Orbax wrote.

    Attributes:
      directory: Where it is.
      metadata: The tree of Orbax's array and scalar metadata.
    """

    directory: epath.Path
    metadata: Any

    @property
    def shapes(self) -> Shapes:
        """The shape of each leaf."""
        return {
            path: tuple(getattr(leaf, "shape", None) or ())
            for path, leaf in flatten(self.metadata).items()
        }

    def read(self, dtypes: Mapping[KeyPath, Any]) -> dict[KeyPath, np.ndarray]:
        """Reads the leaves at the given paths, each in the given dtype."""
        leaves = flatten(self.metadata)
        structure = jax.tree.structure(self.metadata)
        specs = [_spec(path, leaves, dtypes) for path in leaves]
        arguments = ocp.args.PyTreeRestore(
            item=jax.tree.unflatten(structure, specs),
            restore_args=jax.tree.unflatten(
                structure, [_restore_args(path, dtypes) for path in leaves]
            ),
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(self.directory, args=arguments)
        return {path: leaf for path, leaf in flatten(tree).items() if path in dtypes}


def _spec(path: KeyPath, leaves: Mapping[KeyPath, Any], dtypes: Mapping[KeyPath, Any]) -> Any:
    if path not in dtypes:
        return ocp.PLACEHOLDER
    return jax.ShapeDtypeStruct(leaves[path].shape, dtypes[path])


def _restore_args(path: KeyPath, dtypes: Mapping[KeyPath, Any]) -> ocp.RestoreArgs:
    # Old Orbax stored some leaves together in one file. Reading it ignores placeholders, so
    # even a leaf that is not wanted must not be restored with the sharding that it had.
    return ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtypes.get(path))


def _metadata(directory: epath.Path) -> Any:
    handler = ocp.PyTreeCheckpointHandler()
    try:
        return handler.metadata(directory).tree
    finally:
        handler.close()


@dataclass(frozen=True)
class LoadedItem:
    """A tree of arrays in memory.

    Attributes:
      tree: Nested dictionaries of arrays.
    """

    tree: Any

    @property
    def shapes(self) -> Shapes:
        """The shape of each leaf."""
        return {path: np.shape(leaf) for path, leaf in flatten(self.tree).items()}

    def read(self, dtypes: Mapping[KeyPath, Any]) -> dict[KeyPath, np.ndarray]:
        """Returns the leaves at the given paths, each in the given dtype."""
        leaves = flatten(self.tree)
        return {
            path: np.asarray(leaves[path]).astype(dtype, copy=False)
            for path, dtype in dtypes.items()
        }


def _msgpack(path: epath.Path) -> Any:
    """Reads the one file that flax.training.checkpoints wrote before it used Orbax."""
    content = path.read_bytes()
    try:
        return flax.serialization.msgpack_restore(content)
    except MemoryError:
        raise
    except Exception as error:  # msgpack, NumPy and flax raise different types
        raise CorruptError(f"it cannot be read as msgpack: {error}") from error
