"""The command `jaxval-sample`: writes a sample of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from jaxval.cli import apps, devices, frame, settings
from jaxval.cli.app import Values
from jaxval.errors import UserError
from jaxval.results.console import progress
from jaxval.sampling import strategies
from jaxval.sampling.write import write_sample

if TYPE_CHECKING:
    from jaxval.sampling.dense import Ranker  # it imports JAX


def main(flags: Values) -> int:
    """Writes the sample."""
    if not flags.strategy:
        raise UserError("--strategy is not set (see --help)")
    files, output_dir = settings.dataset(flags), settings.output_dir(flags).resolve()
    strategy = strategies.parse(flags.strategy)
    strategies.check_step([strategy], flags.dense_step)
    # bm25s makes JAX open a device. It must not be the trainer's.
    devices.apply(flags.devices if strategy.dense else "cpu")
    runs, ranker = settings.runs(flags), None
    if strategy.dense:
        ranker = _open_ranker(flags, output_dir)
    print(write_sample(files, strategy, runs, flags.seed, output_dir, progress, ranker))
    return 0


def _open_ranker(flags: Values, output_dir: Path) -> Ranker:
    from jaxval.sampling import dense  # it imports JAX

    watching = settings.watching(flags)
    return dense.open_ranker(
        settings.evaluation(flags),
        watching.checkpoint_dir,
        flags.dense_step,
        output_dir,
        lambda: devices.open_devices(flags.devices),
        progress,
    )


def app() -> NoReturn:
    """Runs the command."""
    frame.run(main, apps.SAMPLE)


if __name__ == "__main__":
    app()
