"""Seconds by stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Seconds by stage, going on from those given."""

    def __init__(self, seconds: dict[str, float] | None = None):
        self.seconds = dict(seconds or {})

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Counts what is done in this context for `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
