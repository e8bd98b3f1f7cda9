"""Hits and qrels -> a value a query, for any measure that ir_measures can parse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import ir_measures
import numpy as np

from jaxval.errors import UserError
from jaxval.metrics import ranks
from jaxval.metrics.ranks import RowQrels
from jaxval.records import Hits


class _AvgRank(ir_measures.measures.Measure):  # type: ignore[misc]
    """The mean rank of a query's relevant passages; lower is better.

    As DPR validates (Karpukhin et al., Dense Passage Retrieval for Open-Domain Question
    Answering, EMNLP 2020, and its code): each is ranked among the passages that are
    searched, or re-ranked. One that is not found counts as right behind the last place,
    depth + 1.
    """

    NAME = __name__ = "AvgRank"
    SUPPORTED_PARAMS: ClassVar = {"rel": ir_measures.measures.ParamInfo(dtype=int, default=1)}


ir_measures.measures.register(_AvgRank())

_TRIAL_QRELS = {"0": {"0": 1, "1": 0}}
_TRIAL_RUN = {"0": {"1": 2.0, "0": 1.0}}


def parse(names: Sequence[str], depth: int) -> list[Any]:
    """The measures of these names.

    Raises:
      UserError: a name means no measure, none here can compute it, or it looks deeper
        than `depth`.
    """
    if not names:
        raise UserError("`measures` is empty: name at least one, e.g. `measures=RR@10`")
    return [_parse(name, depth) for name in names]


def lower_is_better(measure: Any) -> bool:
    """Whether the lower of two values is the better one; of ir_measures' own, of none."""
    return isinstance(measure, _AvgRank)


def evaluate(
    measures: Sequence[Any], qrels: RowQrels, query_ids: Sequence[str], hits: Hits
) -> dict[str, np.ndarray]:
    """Each measure of each query, [queries] float64, in the order of `query_ids`.

    The common ones are computed by `ranks`, the others by ir_measures.
    """
    graded = ranks.grade(qrels, query_ids, hits.rows)
    others = [measure for measure in measures if not ranks.computes(measure)]
    elsewhere = _by_ir_measures(others, qrels, query_ids, hits) if others else {}
    return {
        str(measure): ranks.compute(measure, graded)
        if ranks.computes(measure)
        else elsewhere[str(measure)]
        for measure in measures
    }


def _by_ir_measures(
    measures: Sequence[Any], qrels: RowQrels, query_ids: Sequence[str], hits: Hits
) -> dict[str, np.ndarray]:
    """The order of the hits decides: they are handed on with falling scores, so that no
    provider breaks ties its own way. Queries are handed on as numbers, since some
    providers (gdeval, of ERR) take no others.
    """
    depth = hits.rows.shape[1]
    scores = [float(depth - rank) for rank in range(depth)]
    run = {
        str(i): dict(zip(map(str, rows[:count].tolist()), scores, strict=False))
        for i, (rows, count) in enumerate(zip(hits.rows, hits.counts, strict=True))
        if count
    }
    # On a query whose grades are all below 0, pytrec_eval never returns.
    judged = {
        str(i): {doc: max(grade, 0) for doc, grade in qrels[query].items()}
        for i, query in enumerate(query_ids)
    }
    values = {str(measure): np.zeros(len(query_ids)) for measure in measures}
    for metric in ir_measures.iter_calc(measures, judged, run):
        values[str(metric.measure)][int(metric.query_id)] = metric.value
    return values


def _parse(name: str, depth: int) -> Any:
    try:
        measure = ir_measures.parse_measure(name)
        measure.validate_params()
        if not ranks.computes(measure):
            list(ir_measures.iter_calc([measure], _TRIAL_QRELS, _TRIAL_RUN))
    except Exception as error:
        why = " ".join(str(error).split())
        if "cutoff=<" in why:  # ir_measures shows its placeholder
            why = f"it needs a cutoff, as in {name}@10"
        raise UserError(
            f"`measures`: {name!r} is no measure that ir_measures can compute here ({why})."
            " Examples: RR@10, nDCG@10, R@100, AP, P@5, Success@1"
        ) from error
    cutoff = measure.params.get("cutoff", 0)
    if cutoff > depth:
        raise UserError(
            f"`measures`: {name} looks at {cutoff} hits and `depth={depth}` gives fewer:"
            f" set `depth={cutoff}` or more"
        )
    return measure
