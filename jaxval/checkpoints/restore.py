"""Restores only the encoder's parameters from checkpoints to host memory."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxval.checkpoints import items, locate, lora
from jaxval.checkpoints.commit import committed, files, read_commit
from jaxval.checkpoints.items import Item, LoadedItem
from jaxval.checkpoints.locate import AUTO, Plan
from jaxval.checkpoints.lora import Base
from jaxval.checkpoints.trees import flatten
from jaxval.errors import (
    CheckpointError,
    CorruptError,
    JaxvalError,
    MismatchError,
    NonFiniteError,
    VanishedError,
)
from jaxval.records import Checkpoint, Params, ParamsPaths

_DAMAGE = ("DATA_LOSS", "OUT_OF_RANGE", "FAILED_PRECONDITION", "NOT_FOUND", "INVALID_ARGUMENT")
"""Status codes that tensorstore reports for damaged files."""


@dataclass(frozen=True)
class Restored:
    """An encoder's parameters in host memory.

    Attributes:
      params: The tree that the encoder expects, of NumPy arrays; {"query": tree, "passage":
        tree} if `untied`.
      found_at: The subtree of the checkpoint that contains them, e.g. `default/params`.
      seconds: How long restoring took, in seconds.
      untied: Whether each tower has its own parameters.
      remarks: Notes for the user on how the parameters were found.
      items: The names of the checkpoint's items that were read.
    """

    params: Params
    found_at: str
    seconds: float = 0.0
    untied: bool = False
    remarks: tuple[str, ...] = ()
    items: frozenset[str] = frozenset()


def restore(
    checkpoint: Checkpoint,
    abstract_params: Params,
    paths: ParamsPaths = AUTO,
    base: Base | None = None,
) -> Restored:
    """Reads the leaves that the encoder expects from a committed checkpoint.

    Args:
      checkpoint: The checkpoint.
      abstract_params: The encoder's tree of jax.ShapeDtypeStruct. Leaves are cast to these
        dtypes while they are read.
      paths: The subtrees that the user names.
      base: The parameters that the checkpoint's adapters change; None if the checkpoint
        contains all parameters.

    Raises:
      MismatchError: No subtree has the encoder's leaves, or several have.
      VanishedError: The checkpoint was deleted or replaced.
      CorruptError: The checkpoint is damaged.
      NonFiniteError: The parameters contain NaN or infinity.
      OSError: The file system failed; another attempt may succeed.
    """
    start = time.perf_counter()
    root = epath.Path(checkpoint.readable)
    before = _files(root, checkpoint)
    try:
        opened = items.open_items(root)
        restored = _restored(opened, _plan(opened, abstract_params, paths, base))
    except JaxvalError as error:
        raise _named(error, checkpoint) from None
    except Exception as error:
        raise _classified(error, root, before, checkpoint) from error
    if _files(root, checkpoint) != before:
        raise VanishedError(f"{_name(checkpoint)} changed while it was read")
    _check_finite(restored.params, checkpoint)
    return replace(restored, seconds=time.perf_counter() - start)


def absolute(path: str) -> epath.Path:
    """Returns an absolute path, as Orbax needs it. The URL of an object store stays."""
    return epath.Path(path if "://" in path else Path(path).expanduser().absolute())


def find_checkpoint(path: str) -> epath.Path | None:
    """Returns the checkpoint at `path`, or the only checkpoint inside it, or None."""
    root = absolute(path)
    if not root.exists():
        return None
    if items.is_tree(root):
        return root
    inside = committed(root) if root.is_dir() else []
    return inside[0].path if len(inside) == 1 else None


def read(root: epath.Path, abstract_params: Params) -> Restored:
    """Reads the encoder's parameters from a checkpoint that no trainer writes to.

    Args:
      root: The checkpoint's directory or file, from `find_checkpoint`.
      abstract_params: The encoder's tree of jax.ShapeDtypeStruct.

    Raises:
      MismatchError: The parameters do not fit the encoder.
      CorruptError: The checkpoint is damaged.
    """
    try:
        opened = items.open_items(root)
        return _restored(opened, locate.plan(abstract_params, items.shapes(opened)))
    except Exception as error:
        if not _is_damage(error):
            raise
        raise _corrupt(error, "it") from error


def fitted(params: Params, abstract_params: Params) -> Restored:
    """Returns the encoder's parameters out of a tree in memory.

    Args:
      params: A tree of arrays, of which a subtree fits the encoder.
      abstract_params: The encoder's tree of jax.ShapeDtypeStruct.

    Raises:
      MismatchError: No subtree fits, or several fit.
    """
    opened = {"": LoadedItem(params)}
    return _restored(opened, locate.plan(abstract_params, items.shapes(opened)))


def _plan(
    opened: Mapping[str, Item],
    abstract_params: Params,
    paths: ParamsPaths,
    base: Base | None,
) -> Plan:
    shapes = items.shapes(opened)
    if base is not None:
        return lora.plan(base, shapes, paths)
    if paths == AUTO:
        wanted = {path: leaf.shape for path, leaf in flatten(abstract_params).items()}
        lora.require_no_adapters(wanted, shapes)
    return locate.plan(abstract_params, shapes, paths)


def _restored(opened: Mapping[str, Item], plan: Plan) -> Restored:
    return Restored(
        params=plan.build(items.read(opened, plan.reads)),
        found_at=plan.found_at,
        untied=plan.untied,
        remarks=plan.remarks,
        items=items.read_from(opened, plan.reads),
    )


def _files(root: epath.Path, checkpoint: Checkpoint) -> list[str]:
    """Returns the files of a checkpoint.

    Raises:
      VanishedError: It was deleted or replaced.
    """
    names = files(root)
    now = read_commit(root) if checkpoint.pin is None else checkpoint
    if not names or now is None:
        raise VanishedError(
            f"{_name(checkpoint)} was deleted before it could be read; let the trainer keep"
            " more checkpoints"
        )
    if now != checkpoint:
        raise VanishedError(f"{_name(checkpoint)} was saved again before it could be read")
    return names


def _classified(
    error: Exception, root: epath.Path, before: list[str], checkpoint: Checkpoint
) -> Exception:
    """Returns the error to raise: the checkpoint vanished, or is corrupt, or `error` itself."""
    try:
        whole = _files(root, checkpoint) == before
    except VanishedError as vanished:
        return vanished
    if not whole:
        return VanishedError(f"{_name(checkpoint)} changed while it was read")
    return _corrupt(error, _name(checkpoint)) if _is_damage(error) else error


def _corrupt(error: Exception, what: str) -> CorruptError:
    first = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return CorruptError(f"{what} cannot be read: {first[0][:300]}")


def _is_damage(error: Exception) -> bool:
    """Returns whether an error is about the content of files.

    Other errors are failures of the file system, or bugs.
    """
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError)
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return True
    return any(status in str(error) for status in _DAMAGE)


def _named(error: JaxvalError, checkpoint: Checkpoint) -> JaxvalError:
    """Returns the error with the checkpoint's name in front of its text."""
    if isinstance(error, (MismatchError, CheckpointError)):
        return type(error)(f"{_name(checkpoint)}: {error}")
    return error


def _name(checkpoint: Checkpoint) -> str:
    return f"checkpoint {checkpoint.name} ({checkpoint.path})"


def _check_finite(params: Params, checkpoint: Checkpoint) -> None:
    for leaf in jax.tree.leaves(params):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(leaf).all():
            raise NonFiniteError(
                f"{_name(checkpoint)}: its parameters contain NaN or infinity;"
                " the training diverged"
            )
