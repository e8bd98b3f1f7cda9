"""Validates every Orbax checkpoint of a dense retriever, as its training commits it.

python -m jaxval.main --flagfile=val.flags
"""

from __future__ import annotations

from jaxval import app, devices, flags
from jaxval.checkpoints.watch import Watcher


def main() -> int:
    """Flags -> Config -> the loop."""
    config = flags.config()
    devices.apply(flags.devices())
    watching = config.watching
    # Before JAX is imported: in those seconds a trainer may delete a checkpoint.
    watcher = Watcher(
        watching.checkpoint_dir, watching.pin_dir, interval=watching.poll_interval
    )
    watcher.start()
    try:
        from jaxval import loop

        return loop.run(config, watcher, devices.open_devices(flags.devices()))
    finally:
        watcher.stop()


if __name__ == "__main__":
    app.run(main, flags.TOPICS, __doc__ or "")
