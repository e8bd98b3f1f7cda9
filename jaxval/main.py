"""Validates every Orbax checkpoint of a dense retriever, as its training commits it.

python -m jaxval.main --flagfile=val.flags
"""

from __future__ import annotations

from jaxval.checkpoints.watcher import Watcher
from jaxval.cli import devices, flags, frame
from jaxval.config import Config, Watching
from jaxval.results import lock


def main() -> int:
    """Flags -> Config -> the loop."""
    config = flags.config()
    devices.apply(flags.devices(), config.output.directory / "compiled")
    if flags.check():
        return _check(config)
    with lock.hold(config.output.directory):
        # Before JAX is imported: in those seconds a trainer may delete a checkpoint.
        watcher = _watcher(config.watching)
        watcher.start()
        try:
            from jaxval.run import session

            return session.run(config, watcher, lambda: devices.open_devices(flags.devices()))
        finally:
            watcher.stop()


def _check(config: Config) -> int:
    """Takes no lock and pins nothing, so that it can run beside another."""
    from jaxval.check import check_report, checker
    from jaxval.results.console import progress

    found = checker.run(config, lambda: devices.open_devices(flags.devices()), progress)
    print(*map(frame.as_flags, check_report.lines(found)), sep="\n", flush=True)
    return found.status


def _watcher(watching: Watching) -> Watcher:
    return Watcher(
        watching.checkpoint_dir,
        watching.pin_dir,
        interval=watching.poll_interval,
        limit=watching.pin_limit,
        newest_first=watching.order != "all",
    )


if __name__ == "__main__":
    frame.run(main, flags.TOPICS, __doc__ or "")
