"""The app that turns a Hugging Face folder into an Orbax checkpoint, for a baseline row.

python -m jaxval.convert --model=FOLDER --checkpoint_dir=DIR --step=0
"""

from __future__ import annotations

import itertools
from pathlib import Path

from absl import flags

from jaxval.cli import frame
from jaxval.errors import UserError
from jaxval.records import Params

MODEL = flags.DEFINE_string("model", "", "A Hugging Face folder, or a hub name.")
CHECKPOINT_DIR = flags.DEFINE_string(
    "checkpoint_dir", "", "The folder of checkpoints into which it is put."
)
STEP = flags.DEFINE_integer(
    "step", 0, "Training step under which it is put there.", lower_bound=0
)


def convert(model: str, checkpoint_dir: Path, step: int) -> str:
    """Writes `checkpoint_dir/<step>`, a committed checkpoint of {"params": tree}.

    A bare save, on the CPU. It is no CheckpointManager's, since opening one would clean
    up what a trainer is writing beside it.

    Returns:
      One line that says what was written.

    Raises:
      UserError: the step is there already.
      EncoderError: the model cannot be read.
    """
    target = checkpoint_dir.absolute() / str(step)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{checkpoint_dir} cannot be written: {error}") from error
    if target.exists():
        raise UserError(f"{target} exists already: choose another --step or remove it")

    import jax

    from jaxval.encoders import folder

    # A trainer's accelerator is left alone.
    jax.config.update("jax_platforms", "cpu")
    params, ignored = folder.load_weights(folder.read(model, weights=True))
    _save(target, params)
    return _summary(target, [leaf.size for leaf in jax.tree.leaves(params)], ignored)


def _save(target: Path, params: Params) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(target, {"params": params})


def _summary(target: Path, sizes: list[int], ignored: list[str]) -> str:
    count = sum(sizes)
    written = f"wrote {target}: {len(sizes)} leaves, {count:,} parameters, {4 * count:,} bytes"
    return f"{written}; left out: {', '.join(_brief(ignored)) or 'nothing'}"


def _brief(names: list[str]) -> list[str]:
    """A T5's decoder has hundreds of arrays: those that begin alike are counted together."""
    groups = itertools.groupby(sorted(names), key=lambda name: name.partition(".")[0])
    listed = [(first, list(group)) for first, group in groups]
    return [
        text
        for first, group in listed
        for text in (group if len(group) < 4 else [f"{first}.* ({len(group)} arrays)"])
    ]


def main() -> int:
    """Flags -> a checkpoint."""
    if not (MODEL.value and CHECKPOINT_DIR.value):
        raise UserError("set --model=FOLDER and --checkpoint_dir=DIR")
    print(convert(MODEL.value, Path(CHECKPOINT_DIR.value), STEP.value))
    return 0


if __name__ == "__main__":
    frame.run(main, {"Flags": (MODEL, CHECKPOINT_DIR, STEP)}, __doc__ or "")
