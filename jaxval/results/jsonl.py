"""metrics.jsonl: one line for each validation, rewritten from the ledger at every start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jaxval.atomic import replace_file
from jaxval.records import Failure, Ranked, Validation


class JsonLines:
    """Mirrors the ledger to a file of JSON objects, one on each line.

    Args:
      path: The file.
    """

    def __init__(self, path: Path):
        self._path = path

    def begin(self, past: Sequence[Ranked], failures: Sequence[Failure]) -> None:
        """Replaces the file. An earlier run may have been killed between a row and its line."""
        with replace_file(self._path) as partial:
            partial.write_text("".join(_line(ranked.validation) for ranked in past))

    def record(self, ranked: Ranked) -> None:
        """Appends a line."""
        with self._path.open("a") as file:
            file.write(_line(ranked.validation))

    def fail(self, failure: Failure) -> None:
        """Does nothing: a failure has no measures."""

    def end(self) -> None:
        """Does nothing: no file is open."""


def _line(validation: Validation) -> str:
    checkpoint = validation.checkpoint
    return (
        json.dumps(
            {
                "step": checkpoint.step,
                "dataset": validation.dataset,
                "checkpoint": str(checkpoint.path),
                "committed_ns": checkpoint.commit_ns,
                "measures": validation.measures,
                **_standing(validation),
                "seconds": {stage: round(s, 4) for stage, s in validation.seconds.items()},
                "passages": validation.passages,
                "passages_per_second": round(validation.rate, 1),
                "queries": validation.queries,
                "params_at": validation.params_at,
                "series": validation.series,
            }
        )
        + "\n"
    )


def _standing(validation: Validation) -> dict[str, object]:
    standing = validation.standing
    if standing is None:
        return {}
    return {
        "intervals": standing.intervals,
        "against": standing.against,
        "p_values": standing.p_values,
    }
