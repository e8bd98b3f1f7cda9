"""The command `jaxval-convert`: writes a Hugging Face model as an Orbax checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from jaxval.cli import apps, devices, frame
from jaxval.cli.app import Values
from jaxval.errors import UserError


def main(flags: Values) -> int:
    """Writes the checkpoint."""
    if not (flags.model and flags.checkpoint_dir):
        raise UserError("set --model=FOLDER and --checkpoint_dir=DIR (see --help)")
    devices.apply("cpu")  # not on a trainer's accelerator

    from jaxval.evaluation.baseline import write_baseline  # it imports JAX

    print(write_baseline(flags.model, Path(flags.checkpoint_dir), flags.step))
    return 0


def app() -> NoReturn:
    """Runs the command."""
    frame.run(main, apps.CONVERT)


if __name__ == "__main__":
    app()
