"""Computes measures from hits and judgments: all measures of ir_measures, and AvgRank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import ir_measures
import numpy as np

from jaxval.errors import UserError
from jaxval.metrics import ranks
from jaxval.metrics.ranks import Judgments
from jaxval.records import Hits


class _AvgRank(ir_measures.measures.Measure):  # type: ignore[misc]
    """The mean rank of a query's relevant passages; lower is better.

    DPR validates by it (Karpukhin et al., Dense Passage Retrieval for Open-Domain Question
    Answering, EMNLP 2020, and its code). Each relevant passage is ranked among the passages
    that are searched or re-ranked. A relevant passage that is not found has rank depth + 1.
    """

    NAME = __name__ = "AvgRank"
    SUPPORTED_PARAMS: ClassVar = {"rel": ir_measures.measures.ParamInfo(dtype=int, default=1)}


ir_measures.measures.register(_AvgRank())

_TRIAL_QRELS = {"0": {"0": 1, "1": 0}}
_TRIAL_RUN = {"0": {"1": 2.0, "0": 1.0}}


def parse(names: Sequence[str], depth: int) -> list[Any]:
    """Returns the measures of these names.

    Args:
      names: The names, as ir_measures spells them, or `AvgRank`.
      depth: Number of hits for each query.

    Raises:
      UserError: There is no such measure, it cannot be computed here, or its cutoff is
        greater than `depth`.
    """
    if not names:
        raise UserError("`measures` is empty: name at least one, e.g. `measures=RR@10`")
    return [_parse(name, depth) for name in names]


def lower_is_better(measure: Any) -> bool:
    """Returns whether the lower of two values is better. True only for AvgRank."""
    return isinstance(measure, _AvgRank)


def evaluate(
    measures: Sequence[Any], judgments: Judgments, hits: Hits
) -> dict[str, np.ndarray]:
    """Returns measure name -> [queries] float64, the value of each query.

    The common measures are computed by `ranks`, the others by ir_measures.

    Args:
      measures: The measures, as `parse` returns them.
      judgments: The judgments of the queries.
      hits: The hits of the same queries, in the same order.
    """
    graded = ranks.grade(judgments, hits.rows)
    others = [measure for measure in measures if not ranks.computes(measure)]
    other_values = _by_ir_measures(others, judgments, hits) if others else {}
    return {
        str(measure): ranks.compute(measure, graded)
        if ranks.computes(measure)
        else other_values[str(measure)]
        for measure in measures
    }


def _by_ir_measures(
    measures: Sequence[Any], judgments: Judgments, hits: Hits
) -> dict[str, np.ndarray]:
    """Computes measures by ir_measures.

    The hits get falling scores, so that their order decides and no provider breaks ties in
    another way. The ids of queries are their numbers, because some providers (gdeval, of ERR)
    take no other ids.
    """
    depth = hits.rows.shape[1]
    scores = [float(depth - rank) for rank in range(depth)]
    run = {
        str(i): dict(zip(map(str, rows[:count].tolist()), scores, strict=False))
        for i, (rows, count) in enumerate(zip(hits.rows, hits.counts, strict=True))
        if count
    }
    values = {str(measure): np.zeros(judgments.queries) for measure in measures}
    for metric in ir_measures.iter_calc(measures, _as_qrels(judgments), run):
        values[str(metric.measure)][int(metric.query_id)] = metric.value
    return values


def _as_qrels(judgments: Judgments) -> dict[str, dict[str, int]]:
    """Returns query number -> row -> grade, all ids as text.

    Each document that the corpus lacks has a name that no hit has. A grade below 0 becomes
    0: on a query that has no other grades, pytrec_eval never returns.
    """
    qrels: dict[str, dict[str, int]] = {str(number): {} for number in range(judgments.queries)}
    entries = zip(
        judgments.query.tolist(), judgments.row.tolist(), judgments.grade.tolist(), strict=True
    )
    for entry, (query, row, grade) in enumerate(entries):
        document = str(row) if row >= 0 else f"missing:{entry}"
        qrels[str(query)][document] = max(grade, 0)
    return qrels


def _parse(name: str, depth: int) -> Any:
    try:
        measure = ir_measures.parse_measure(name)
        measure.validate_params()
        if not ranks.computes(measure):
            list(ir_measures.iter_calc([measure], _TRIAL_QRELS, _TRIAL_RUN))
    except Exception as error:
        why = " ".join(str(error).split())
        if "cutoff=<" in why:  # the placeholder of ir_measures
            why = f"it needs a cutoff, as in {name}@10"
        raise UserError(
            f"`measures`: {name!r} is no measure that ir_measures can compute here ({why})."
            " Examples: RR@10, nDCG@10, R@100, AP, P@5, Success@1"
        ) from error
    cutoff = measure.params.get("cutoff", 0)
    if cutoff > depth:
        raise UserError(
            f"`measures`: {name} needs {cutoff} hits and `depth={depth}` gives fewer:"
            f" set `depth={cutoff}` or more"
        )
    return measure
