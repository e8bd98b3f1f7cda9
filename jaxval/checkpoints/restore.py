"""Restores the encoder's parameters alone from whatever Orbax wrote, into host memory.

The saved topology plays no part: every wanted leaf is asked for as a NumPy array, every
other leaf with a placeholder, so its bytes are not read.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxval.checkpoints.commit import files, read_commit
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
_DAMAGE = ("DATA_LOSS", "OUT_OF_RANGE", "FAILED_PRECONDITION", "NOT_FOUND", "INVALID_ARGUMENT")
"""What tensorstore says of damaged files."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """An encoder's parameters in host memory.

    Attributes:
      params: the tree that the encoder expects, of NumPy arrays.
      found_at: where in the checkpoint it stood, e.g. `default/params`.
      seconds: how long it took.
    """

    params: Params
    found_at: str
    seconds: float = 0.0


def restore(
    checkpoint: Checkpoint,
    abstract_params: Params,
    params_path: str | None = None,
) -> Restored:
    """Reads the leaves that the encoder expects, and nothing else.

    Args:
      checkpoint: a committed one.
      abstract_params: the encoder's tree of jax.ShapeDtypeStruct; leaves are cast to these
        dtypes while they are read.
      params_path: the subtree to take, where more than one would fit.

    Raises:
      MismatchError: no subtree has the encoder's leaves, or several do.
      VanishedError, CorruptError, NonFiniteError: the checkpoint is at fault.
      OSError: the file system is; another try may succeed.
      Exception: anything else is a fault of this program, and passes as it is.
    """
    start = time.perf_counter()
    root = epath.Path(checkpoint.readable)
    before = _files(root, checkpoint)
    try:
        restored = _restore(root, abstract_params, params_path)
    except JaxvalError as error:
        raise _placed(error, checkpoint) from None
    except Exception as error:
        raise _classified(error, root, before, checkpoint) from error
    if _files(root, checkpoint) != before:
        raise VanishedError(f"{_name(checkpoint)} changed while it was read")
    _check_finite(restored.params, checkpoint)
    return dataclasses.replace(restored, seconds=time.perf_counter() - start)


def _restore(
    root: epath.Path,
    abstract_params: Params,
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
    leaves: dict[KeyPath, Any] = {}
    for item, tree in metadata.items():
        leaves |= _read(
            root / item, tree, _specs(sources, item, metadata, wanted), _parts(item)
        )
    params = _assemble(abstract_params, sources, leaves)
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


def _specs(
    sources: dict[KeyPath, KeyPath],
    item: str,
    metadata: dict[str, Any],
    wanted: dict[KeyPath, Any],
) -> dict[KeyPath, Any]:
    """What to ask of one item, by the path within it. Towers may stand in two items."""
    return {
        source[len(_parts(item)) :]: wanted[path]
        for path, source in sources.items()
        if (source[0] if source[0] in metadata else "") == item
    }


def _read(
    directory: epath.Path, metadata: Any, specs: dict[KeyPath, Any], item: KeyPath
) -> dict[KeyPath, Any]:
    """The leaves asked for, by their paths in the checkpoint."""
    if not specs:
        return {}
    paths, structure = list(flatten(metadata)), jax.tree.structure(metadata)
    wanted = [specs.get(path, ocp.PLACEHOLDER) for path in paths]
    how = [
        ocp.RestoreArgs(restore_type=np.ndarray, dtype=specs[path].dtype)
        if path in specs
        else ocp.RestoreArgs()
        for path in paths
    ]
    arguments = ocp.args.PyTreeRestore(
        item=jax.tree.unflatten(structure, wanted),
        restore_args=jax.tree.unflatten(structure, how),
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(directory, args=arguments)
    return {(*item, *path): leaf for path, leaf in flatten(tree).items() if path in specs}


def _assemble(
    abstract_params: Params,
    sources: dict[KeyPath, KeyPath],
    leaves: dict[KeyPath, Any],
) -> Params:
    """The encoder's tree, each leaf checked: a lost one must not pass as its own spec."""
    ordered = []
    for path, spec in flatten(abstract_params).items():
        leaf = leaves.get(sources[path])
        if not isinstance(leaf, np.ndarray) or leaf.shape != spec.shape:
            raise CorruptError(f"{show(path)} could not be read whole")
        ordered.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(abstract_params), ordered)


def _common(sources: dict[KeyPath, KeyPath]) -> KeyPath:
    wanted, found = next(iter(sources.items()))
    boxed = found[-1] != wanted[-1]
    return found[: len(found) - len(wanted) - boxed]


def _files(root: epath.Path, checkpoint: Checkpoint) -> list[str]:
    """Its files, if it is still the checkpoint that it was."""
    names = files(root)
    if not names:
        raise VanishedError(f"{_name(checkpoint)} was deleted before it could be read")
    if checkpoint.pin is None and (now := read_commit(root)) != checkpoint:
        what = "saved again" if now else "deleted"
        raise VanishedError(f"{_name(checkpoint)} was {what} before it could be read")
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
    if not _is_damage(error):
        return error
    first = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return CorruptError(f"{_name(checkpoint)} cannot be read: {first[0][:300]}")


def _is_damage(error: Exception) -> bool:
    """Whether it speaks of the files' content: not of a bug, nor of a disk that hiccups."""
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError)
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return True
    return any(status in str(error) for status in _DAMAGE)


def _placed(error: JaxvalError, checkpoint: Checkpoint) -> JaxvalError:
    if isinstance(error, (MismatchError, CheckpointError)):
        return type(error)(f"{_name(checkpoint)}: {error}")
    return error


def _name(checkpoint: Checkpoint) -> str:
    return f"checkpoint {checkpoint.name} ({checkpoint.path})"


def _check_finite(params: Params, checkpoint: Checkpoint) -> None:
    for leaf in jax.tree.leaves(params):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(leaf).all():
            raise NonFiniteError(
                f"{_name(checkpoint)}: its parameters hold NaN or infinity;"
                " the training diverged"
            )
