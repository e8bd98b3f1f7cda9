"""Writes a Hugging Face model as a checkpoint, to be validated as a baseline."""

from __future__ import annotations

import itertools
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from jaxval.encoders import folder
from jaxval.errors import UserError


def write_baseline(model: str, checkpoint_dir: Path, step: int) -> str:
    """Writes `checkpoint_dir/<step>`, a committed checkpoint of {"params": tree}.

    It is saved without a CheckpointManager, because opening one would remove what a trainer
    is writing to the same directory.

    Args:
      model: A Hugging Face folder or hub name.
      checkpoint_dir: The directory of checkpoints. It is made if it does not exist.
      step: The training step of the checkpoint.

    Returns:
      One line about what was written.

    Raises:
      UserError: The step already exists, or the directory cannot be written.
      EncoderError: The model cannot be read.
    """
    checkpoint = checkpoint_dir.absolute() / str(step)
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"`checkpoint_dir={checkpoint_dir}` cannot be written: {error}"
        ) from error
    if checkpoint.exists():
        raise UserError(f"{checkpoint} exists already: choose another `step`, or remove it")
    params, ignored = folder.load_weights(folder.read(model, weights=True))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(checkpoint, {"params": params})
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    return (
        f"wrote {checkpoint}: {len(sizes)} leaves, {sum(sizes):,} parameters,"
        f" {4 * sum(sizes):,} bytes; left out: {', '.join(_shorten(ignored)) or 'nothing'}"
    )


def _shorten(names: list[str]) -> list[str]:
    """Returns names, with many of one module replaced by their number."""
    shortened = []
    for module, group in itertools.groupby(sorted(names), lambda name: name.partition(".")[0]):
        arrays = list(group)
        many = len(arrays) >= 4
        shortened += [f"{module}.* ({len(arrays)} arrays)"] if many else arrays
    return shortened
