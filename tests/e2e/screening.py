"""A sample and a whole corpus, and checkpoints that are good or bad on both.

By cosine similarity, each query retrieves the passage with the same text first. A bad
checkpoint has the same vector for every text.
"""

import numpy as np

from tests.e2e import world

PASSAGES = world.PASSAGES
QUERIES = {f"q{i}": text for i, text in enumerate(list(PASSAGES.values())[:8])}
QRELS = {f"q{i}": {f"p{i}": 1} for i in range(8)}
SAMPLE = dict(list(PASSAGES.items())[:12])


def write_sets(root):
    """Writes the sample and the whole set, and returns their folders."""
    folders = {"small": SAMPLE, "dev": PASSAGES}
    return [
        world.write_texts(root / name, passages, QUERIES, QRELS)
        for name, passages in folders.items()
    ]


def put(place, **kinds):
    """Saves checkpoints: `put(place, s1="good", s2="bad")`."""
    for name, kind in kinds.items():
        step = int(name[1:])
        table = world.table(step)
        place.put(step, values=np.ones_like(table) if kind == "bad" else table)


def validated(place):
    """Returns (dataset, step) of each validation, in the order of their commits."""
    return place.query(
        "SELECT dataset, step FROM validation JOIN series ON digest = series ORDER BY id"
    )


def failed(place):
    """Returns (dataset, step, reason) of each failure, in the order of their commits."""
    return place.query(
        "SELECT dataset, step, reason FROM failure JOIN series ON digest = series ORDER BY id"
    )
