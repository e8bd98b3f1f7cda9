"""Restores the encoder's parameters alone from whatever Orbax wrote, onto any devices.

The saved topology plays no part: every wanted leaf is asked for with the sharding it is
to have here, every other leaf with a placeholder, so its bytes are not read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxval.checkpoints.commit import files
from jaxval.checkpoints.trees import KeyPath, flatten, locate, show
from jaxval.errors import (
    CheckpointError,
    CorruptError,
    JaxvalError,
    MismatchError,
    NonFiniteError,
    VanishedError,
)
from jaxval.records import Checkpoint, Params

_TREE = "_METADATA"


@dataclasses.dataclass(frozen=True)
class Restored:
    """An encoder's parameters, replicated over the devices.

    Attributes:
      params: the tree that the encoder expects.
      found_at: where in the checkpoint it stood, e.g. `default/params`.
    """

    params: Params
    found_at: str


def restore(
    checkpoint: Checkpoint,
    abstract_params: Params,
    *,
    devices: Sequence[jax.Device],
    params_path: str | None = None,
) -> Restored:
    """Reads the leaves that the encoder expects, and nothing else.

    Args:
      checkpoint: a committed one.
      abstract_params: the encoder's tree of jax.ShapeDtypeStruct; leaves are cast to these
        dtypes while they are read.
      devices: each gets a copy.
      params_path: the subtree to take, where more than one would fit.

    Raises:
      MismatchError: no subtree has the encoder's leaves, or several do.
      VanishedError, CorruptError, NonFiniteError: the checkpoint is at fault.
      OSError: the file system is; another try may succeed.
    """
    root = epath.Path(checkpoint.readable)
    before = _files(root, checkpoint)
    try:
        restored = _restore(root, abstract_params, devices, params_path)
    except JaxvalError as error:
        raise _placed(error, checkpoint) from None
    except Exception as error:
        raise _classified(error, root, before, checkpoint) from error
    if _files(root, checkpoint) != before:
        raise VanishedError(f"{_name(checkpoint)} lost files while it was read")
    _check_finite(restored.params, checkpoint)
    return restored


def _restore(
    root: epath.Path,
    abstract_params: Params,
    devices: Sequence[jax.Device],
    params_path: str | None,
) -> Restored:
    wanted = flatten(abstract_params)
    metadata = {item: _metadata(root / item) for item in _items(root)}
    if not metadata:
        raise CorruptError(f"no {_TREE} in it or in its items: not an Orbax tree")
    found = {
        (*_parts(item), *path): tuple(getattr(leaf, "shape", None) or ())
        for item, tree in metadata.items()
        for path, leaf in flatten(tree).items()
    }
    sources = locate({path: leaf.shape for path, leaf in wanted.items()}, found, params_path)
    item = _item_of(sources, metadata)
    leaves = _read(root / item, metadata[item], _specs(sources, item, wanted, devices))
    params = _assemble(abstract_params, sources, item, leaves)
    return Restored(params, show(_common(sources)))


def _items(root: epath.Path) -> list[str]:
    """The item directories of a checkpoint, '' being itself."""
    own = [""] if (root / _TREE).exists() else []
    return own + sorted(
        child.name for child in root.iterdir() if child.is_dir() and (child / _TREE).exists()
    )


def _metadata(directory: epath.Path) -> Any:
    handler = ocp.PyTreeCheckpointHandler()
    try:
        return handler.metadata(directory).tree
    finally:
        handler.close()


def _parts(item: str) -> KeyPath:
    return (item,) if item else ()


def _item_of(sources: dict[KeyPath, KeyPath], metadata: dict[str, Any]) -> str:
    first = next(iter(sources.values()))
    return first[0] if first[0] in metadata else ""


def _specs(
    sources: dict[KeyPath, KeyPath],
    item: str,
    wanted: dict[KeyPath, Any],
    devices: Sequence[jax.Device],
) -> dict[KeyPath, jax.ShapeDtypeStruct]:
    """What to ask for, by the path within the item."""
    mesh = jax.sharding.Mesh(np.asarray(devices), ("device",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return {
        sources[path][len(_parts(item)) :]: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=everywhere
        )
        for path, leaf in wanted.items()
    }


def _read(
    directory: epath.Path, metadata: Any, specs: dict[KeyPath, jax.ShapeDtypeStruct]
) -> dict[KeyPath, Any]:
    asked = [specs.get(path, ocp.PLACEHOLDER) for path in flatten(metadata)]
    item = jax.tree.unflatten(jax.tree.structure(metadata), asked)
    arguments = ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(directory, args=arguments)
    return {path: leaf for path, leaf in flatten(tree).items() if path in specs}


def _assemble(
    abstract_params: Params,
    sources: dict[KeyPath, KeyPath],
    item: str,
    leaves: dict[KeyPath, Any],
) -> Params:
    """The encoder's tree, each leaf checked: a lost one must not pass as its own spec."""
    ordered = []
    for path, spec in flatten(abstract_params).items():
        leaf = leaves.get(sources[path][len(_parts(item)) :])
        if not isinstance(leaf, jax.Array) or leaf.shape != spec.shape:
            raise CorruptError(f"{show(path)} could not be read whole")
        ordered.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(abstract_params), ordered)


def _common(sources: dict[KeyPath, KeyPath]) -> KeyPath:
    wanted, found = next(iter(sources.items()))
    boxed = found[-1] != wanted[-1]
    return found[: len(found) - len(wanted) - boxed]


def _files(root: epath.Path, checkpoint: Checkpoint) -> list[str]:
    names = files(root)
    if not names:
        raise VanishedError(f"{_name(checkpoint)} was deleted before it could be read")
    return names


def _classified(
    error: Exception, root: epath.Path, before: list[str], checkpoint: Checkpoint
) -> Exception:
    """Tells a deleted checkpoint from a damaged one from a file system that hiccups."""
    try:
        whole = _files(root, checkpoint) == before
    except VanishedError as vanished:
        return vanished
    if not whole:
        return VanishedError(f"{_name(checkpoint)} changed while it was read")
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return error
    first = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return CorruptError(f"{_name(checkpoint)} cannot be read: {first[0][:300]}")


def _placed(error: JaxvalError, checkpoint: Checkpoint) -> JaxvalError:
    if isinstance(error, (MismatchError, CheckpointError)):
        return type(error)(f"{_name(checkpoint)}: {error}")
    return error


def _name(checkpoint: Checkpoint) -> str:
    return f"checkpoint {checkpoint.name} ({checkpoint.path})"


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _check_finite(params: Params, checkpoint: Checkpoint) -> None:
    leaves = [
        leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if leaves and not bool(_all_finite(leaves)):
        raise NonFiniteError(
            f"{_name(checkpoint)}: its parameters hold NaN or infinity; the training diverged"
        )
