"""Makes the watcher that the settings describe.

This module imports no JAX: the watcher must start before JAX is imported, which takes seconds
in which a trainer may delete a checkpoint.
"""

from __future__ import annotations

from jaxval.checkpoints.watcher import Watcher
from jaxval.config import Watching


def make_watcher(watching: Watching) -> Watcher:
    """Returns a watcher that is not started yet."""
    return Watcher(
        watching.checkpoint_dir,
        watching.pin_dir,
        interval=watching.poll_interval,
        limit=watching.pin_limit,
        newest_first=watching.order != "all",
    )
