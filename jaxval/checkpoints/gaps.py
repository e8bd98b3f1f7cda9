"""Which steps came and went while nobody looked, by the steps around them."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Collection


def unseen(known: Collection[int], following: int) -> list[int]:
    """Steps that must have been saved between the last known one and `following`.

    A trainer that saved every n steps until then went on doing so: n is the most common
    distance of the known steps. If that does not lead to `following`, nothing is claimed.

    Args:
      known: steps seen before nobody looked.
      following: the first step seen after.
    """
    steps = sorted(set(known))
    distances = collections.Counter(b - a for a, b in itertools.pairwise(steps))
    if not distances or following <= steps[-1]:
        return []
    (distance, times), *_ = distances.most_common(1)
    if times < 2 or (following - steps[-1]) % distance:
        return []
    return list(range(steps[-1] + distance, following, distance))
