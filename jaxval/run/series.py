"""Opens the series of a run in the ledger, and reopens what earlier runs closed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from jaxval.evaluation.prepare import Prepared
from jaxval.metrics.screening import Screening
from jaxval.records import SCREENED, Checkpoint, Identity
from jaxval.results.ledger import Ledger

_LOG = logging.getLogger(__name__)

Settings = Mapping[str, Any]


def open_series(
    prepared: Prepared, ledger: Ledger, waiting: Collection[Checkpoint], *, retry_failed: bool
) -> None:
    """Opens the series of each validation set.

    Args:
      prepared: What is evaluated.
      ledger: Where the series are opened.
      waiting: Checkpoints that can still be read. Only their failures are removed.
      retry_failed: Whether to remove the failures of earlier runs.
    """
    for eval_set in prepared.plan.sets:
        settings = prepared.settings[eval_set.series]
        _log_changes(ledger.settings(eval_set.name), eval_set.series, settings)
        ledger.open_series(eval_set.series, eval_set.name, settings, eval_set.query_ids)
    readable = {checkpoint.identity for checkpoint in waiting}
    if prepared.screening:
        _reopen(prepared.screening, ledger, readable)
    if retry_failed:
        kept = [SCREENED] if prepared.screening else []
        count = ledger.remove_failures(list(prepared.settings), readable, keep=kept)
        _LOG.info("retrying %d failed checkpoints of earlier runs", count)


def _reopen(screening: Screening, ledger: Ledger, readable: Collection[Identity]) -> None:
    """Removes the verdicts of another sample.

    A verdict is committed together with a result on its sample. So a verdict without a result
    on the present sample was made by another one.
    """
    sample, whole = screening.sample, screening.whole
    count = ledger.reopen(SCREENED, whole.series, sample.series, readable)
    if count:
        _LOG.warning(
            "the sample %s changed since it screened out %d checkpoints; screening them again",
            sample.dataset,
            count,
        )


def _log_changes(earlier: Mapping[str, Settings], series: str, settings: Settings) -> None:
    """Logs which settings differ from those of the latest series, if this series is new."""
    if not earlier or series in earlier:
        return
    latest = list(earlier.values())[-1]
    names = dict.fromkeys([*settings, *latest])
    changed = [name for name in names if latest.get(name) != settings.get(name)]
    _LOG.warning(
        "%s: %s changed since the last run; starting a new series (%s). The results of %d"
        " earlier series stay in the ledger and are not compared with it",
        settings["dataset"],
        " and ".join(changed),
        series[:8],
        len(earlier),
    )
