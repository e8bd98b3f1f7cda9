"""metrics.jsonl: a line a validation, made whole from the ledger at every start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jaxval.atomic import replace_file
from jaxval.records import Failure, Validation


class JsonLines:
    """Mirrors the ledger to one file, an object a line."""

    def __init__(self, path: Path):
        self._path = path

    def begin(self, past: Sequence[Validation], failures: Sequence[Failure]) -> None:
        """Writes what the ledger holds; a kill may have come between a row and its line."""
        with replace_file(self._path) as partial:
            partial.write_text("".join(map(_line, past)))

    def record(self, validation: Validation) -> None:
        """Appends a line."""
        with self._path.open("a") as file:
            file.write(_line(validation))

    def fail(self, failure: Failure) -> None:
        """A failure has no measures, and so no line."""

    def end(self) -> None:
        """Nothing is open."""


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
