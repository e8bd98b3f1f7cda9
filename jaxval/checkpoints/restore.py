"""Restores the encoder's parameters alone from whatever was saved, into host memory."""

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
"""What tensorstore says of damaged files."""


@dataclass(frozen=True)
class Restored:
    """An encoder's parameters in host memory.

    Attributes:
      params: the tree that the encoder expects, of NumPy arrays; if its towers are untied,
        {"query": tree, "passage": tree}.
      found_at: where in the checkpoint it stood, e.g. `default/params`.
      seconds: how long it took.
      untied: whether each tower has a tree of its own.
      remarks: what a person should know of how it was found.
      items: the checkpoint's items that were read.
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
    asked: ParamsPaths = AUTO,
    base: Base | None = None,
) -> Restored:
    """Reads the leaves that the encoder expects, and nothing else.

    Args:
      checkpoint: a committed one.
      abstract_params: the encoder's tree of jax.ShapeDtypeStruct; leaves are cast to these
        dtypes while they are read.
      asked: the subtrees that the user names.
      base: what the checkpoint holds adapters of; None if it holds whole parameters.

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
        found = items.items(root)
        restored = _restored(found, _plan(found, abstract_params, asked, base))
    except JaxvalError as error:
        raise _placed(error, checkpoint) from None
    except Exception as error:
        raise _classified(error, root, before, checkpoint) from error
    if _files(root, checkpoint) != before:
        raise VanishedError(f"{_name(checkpoint)} changed while it was read")
    _check_finite(restored.params, checkpoint)
    return replace(restored, seconds=time.perf_counter() - start)


def standing(path: str) -> epath.Path | None:
    """The checkpoint at a path that no trainer writes to: itself, or the only one in it."""
    local = "://" not in path
    root = epath.Path(Path(path).expanduser().absolute() if local else path)
    if not root.exists():
        return None
    if items.is_tree(root):
        return root
    inside = committed(root) if root.is_dir() else []
    return inside[0].path if len(inside) == 1 else None


def read(root: epath.Path, abstract_params: Params) -> Restored:
    """The parameters of a checkpoint that no trainer writes to.

    Raises:
      MismatchError, CorruptError: they do not fit the encoder, or cannot be read.
    """
    try:
        found = items.items(root)
        return _restored(found, locate.plan(abstract_params, items.shapes(found)))
    except Exception as error:
        raise (_corrupt(error, "it") if _is_damage(error) else error) from error


def fitted(params: Params, abstract_params: Params) -> Restored:
    """The encoder's parameters out of a tree in memory.

    Raises:
      MismatchError: they are not in it.
    """
    found = {"": LoadedItem(params)}
    return _restored(found, locate.plan(abstract_params, items.shapes(found)))


def _plan(
    found: Mapping[str, Item],
    abstract_params: Params,
    asked: ParamsPaths,
    base: Base | None,
) -> Plan:
    shapes = items.shapes(found)
    if base is not None:
        return lora.plan(base, shapes, asked)
    if asked == AUTO:
        wanted = {path: leaf.shape for path, leaf in flatten(abstract_params).items()}
        lora.refuse(wanted, shapes)
    return locate.plan(abstract_params, shapes, asked)


def _restored(found: Mapping[str, Item], plan: Plan) -> Restored:
    return Restored(
        params=plan.build(items.read(found, plan.reads)),
        found_at=plan.found_at,
        untied=plan.untied,
        remarks=plan.remarks,
        items=items.read_from(found, plan.reads),
    )


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
    return _corrupt(error, _name(checkpoint)) if _is_damage(error) else error


def _corrupt(error: Exception, what: str) -> CorruptError:
    first = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return CorruptError(f"{what} cannot be read: {first[0][:300]}")


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
