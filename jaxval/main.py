"""Validates every Orbax checkpoint of a dense retriever, as its training commits it.

python -m jaxval.main --flagfile=val.flags
"""

from __future__ import annotations

from jaxval import app, devices, flags, lock
from jaxval.checkpoints.watch import Watcher
from jaxval.config import Config, Watching


def main() -> int:
    """Flags -> Config -> the loop."""
    config = flags.config()
    devices.apply(flags.devices(), config.output_dir / "compiled")
    if flags.check():
        return _check(config)
    with lock.hold(config.output_dir):
        # Before JAX is imported: in those seconds a trainer may delete a checkpoint.
        watcher = _watcher(config.watching)
        watcher.start()
        try:
            from jaxval import loop

            return loop.run(config, watcher, lambda: devices.open_devices(flags.devices()))
        finally:
            watcher.stop()


def _check(config: Config) -> int:
    """Takes no lock and pins nothing, so that it can run beside another."""
    from jaxval.check import report, run
    from jaxval.trackers.console import progress

    found = run.run(config, lambda: devices.open_devices(flags.devices()), progress)
    print(*report.lines(found), sep="\n", flush=True)
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
    app.run(main, flags.TOPICS, __doc__ or "")
