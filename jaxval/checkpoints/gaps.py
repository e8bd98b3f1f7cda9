"""Steps that were saved and deleted while no jaxval was running, inferred from other steps."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Collection


def unseen(known: Collection[int], following: int) -> list[int]:
    """Returns the steps that must have been saved between the last known one and `following`.

    The trainer is assumed to save at a regular interval, the most common one between the
    known steps. The result is empty if no interval occurs twice, or if `following` is not a
    multiple of it away from the last known step.

    Args:
      known: The steps seen before the gap.
      following: The first step seen after the gap.
    """
    steps = sorted(set(known))
    intervals = collections.Counter(b - a for a, b in itertools.pairwise(steps))
    if not intervals or following <= steps[-1]:
        return []
    (interval, times), *_ = intervals.most_common(1)
    if times < 2 or (following - steps[-1]) % interval:
        return []
    return list(range(steps[-1] + interval, following, interval))
