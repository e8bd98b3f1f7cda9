"""The command `jaxval`: validates every checkpoint of a training."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NoReturn

from jaxval.cli import apps, devices, frame, settings
from jaxval.cli.app import Values
from jaxval.config import Config
from jaxval.records import Tracker
from jaxval.results import lock
from jaxval.run.watching import make_watcher


def main(flags: Values, *trackers: Tracker) -> int:
    """Validates, or reports with --check what a validation would do."""
    config = settings.config(flags)
    devices.apply(flags.devices, config.output.directory / "compiled")
    open_devices = functools.partial(devices.open_devices, flags.devices)
    if flags.check:
        return _check(config, open_devices)
    return _validate(config, open_devices, trackers)


def _validate(config: Config, open_devices: devices.Opener, trackers: Sequence[Tracker]) -> int:
    with lock.hold(config.output.directory):
        watcher = make_watcher(config.watching)
        watcher.start()  # before JAX is imported
        try:
            from jaxval.results.trackers import default_trackers
            from jaxval.run import session

            make = functools.partial(default_trackers, more=trackers)
            return session.run(config, watcher, open_devices, make)
        finally:
            watcher.stop()


def _check(config: Config, open_devices: devices.Opener) -> int:
    from jaxval.check import check_report, checker
    from jaxval.results.console import progress

    report = checker.run(config, open_devices, progress)
    print(*check_report.lines(report), sep="\n", flush=True)
    return report.status


def app(*trackers: Tracker) -> NoReturn:
    """Runs the command. `trackers` are added to the usual ones."""
    frame.run(lambda flags: main(flags, *trackers), apps.VALIDATE)


if __name__ == "__main__":
    app()
