"""The command `jaxval`: validates every checkpoint of a training."""

from __future__ import annotations

import functools
from typing import NoReturn

from jaxval.checkpoints.watcher import Watcher
from jaxval.cli import apps, devices, frame, settings
from jaxval.cli.app import Values
from jaxval.config import Config
from jaxval.results import lock


def main(flags: Values) -> int:
    """Validates, or reports with --check what a validation would do."""
    config = settings.config(flags)
    devices.apply(flags.devices, config.output.directory / "compiled")
    open_devices = functools.partial(devices.open_devices, flags.devices)
    return (_check if flags.check else _validate)(config, open_devices)


def _validate(config: Config, open_devices: devices.Opener) -> int:
    watching = config.watching
    watcher = Watcher(
        watching.checkpoint_dir,
        watching.pin_dir,
        interval=watching.poll_interval,
        limit=watching.pin_limit,
        newest_first=watching.order != "all",
    )
    with lock.hold(config.output.directory):
        watcher.start()  # now: in the seconds that JAX's import takes a trainer may delete one
        try:
            from jaxval.results.trackers import default_trackers
            from jaxval.run import session

            return session.run(config, watcher, open_devices, default_trackers)
        finally:
            watcher.stop()


def _check(config: Config, open_devices: devices.Opener) -> int:
    """Takes no lock and pins nothing, so that it can run beside a validation."""
    from jaxval.check import check_report, checker
    from jaxval.results.console import progress

    report = checker.run(config, open_devices, progress)
    print(*check_report.lines(report), sep="\n", flush=True)
    return report.status


def app() -> NoReturn:
    """Runs the command."""
    frame.run(main, apps.VALIDATE)


if __name__ == "__main__":
    app()
