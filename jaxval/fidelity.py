"""The command `jaxval-fidelity`: compares samples of a corpus with the whole."""

from __future__ import annotations

from typing import NoReturn

from jaxval.cli import apps, devices, frame, settings
from jaxval.cli.app import Values
from jaxval.results.console import progress
from jaxval.sampling import figures


def main(flags: Values) -> int:
    """Writes the report and the figures, and prints the table."""
    config = settings.config(flags)
    figures.check()
    folder = config.output.directory
    devices.apply(flags.devices, folder / "compiled")

    from jaxval.sampling import compare, fidelity_report  # these import JAX

    comparison = compare.plan_comparison(
        config.evaluation,
        config.watching.checkpoint_dir,
        strategies=flags.strategy,
        runs=settings.runs(flags),
        seed=flags.seed,
        steps=settings.steps(flags),
        dense_step=flags.dense_step,
    )
    report = compare.compare(
        config.evaluation, comparison, lambda: devices.open_devices(flags.devices), progress
    )
    fidelity_report.write(folder, report)
    fidelity_report.print_table(report)
    print(f"report       {folder / 'fidelity.json'}")
    print(f"picture      {folder / 'fidelity.png'}, .svg", flush=True)
    return 1 if report["left_out"] else 0


def app() -> NoReturn:
    """Runs the command."""
    frame.run(main, apps.FIDELITY)


if __name__ == "__main__":
    app()
