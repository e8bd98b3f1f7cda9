"""The bench on which every checkpoint is validated, and what decides between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxval.config import Evaluation
from jaxval.corpus import manifest
from jaxval.corpus.datasets import load_queries
from jaxval.encoders.attention import fastest
from jaxval.errors import UserError
from jaxval.evaluation.encode import Tower, default_batch_tokens
from jaxval.evaluation.encoding import Encoding, held, read_encoding
from jaxval.evaluation.plan import CorpusGroup, EvalPlan, EvalSet
from jaxval.evaluation.sets import PreparedSet, prepare_set
from jaxval.metrics import measures as measuring
from jaxval.metrics.screening import Screening
from jaxval.records import DatasetFiles, Progress, SelectBy


@dataclass(frozen=True)
class Prepared:
    """A bench, what the ledger is to know about each of its series, and what decides.

    Attributes:
      bench, settings: of each series by its digest.
      encoding: the tokenizer, and how texts are rendered for it.
      select_by: which checkpoint is best.
      screening: which of them are put to the whole corpus; None for all.
    """

    plan: EvalPlan
    settings: dict[str, dict[str, Any]]
    encoding: Encoding
    select_by: SelectBy
    screening: Screening | None = None


def prepare(
    settings: Evaluation, open_devices: Callable[[], Sequence[jax.Device]], progress: Progress
) -> Prepared:
    """Makes the bench; the devices are opened when all else has been found right.

    Raises:
      UserError: the first fault that was found, in one line.
    """
    measures = measuring.parse(settings.search.measures, settings.search.depth)
    queries = [load_queries(files) for files in settings.datasets]
    encoding = read_encoding(settings)
    sets = [
        prepare_set(files, asked, settings, encoding, measures, progress)
        for files, asked in zip(settings.datasets, queries, strict=True)
    ]
    if settings.confirm:
        _check_sample(*sets)
        _check_source(*settings.datasets, digest=sets[1].settings["corpus"])
    plan = _plan(settings, encoding, sets, measures, open_devices())
    select_by = _select_by(settings.select_by, plan, plan.sets[-1 if settings.confirm else 0])
    screening = _screening(select_by, plan) if settings.confirm else None
    by_series = {one.judged.series: one.settings for one in sets}
    return Prepared(plan, by_series, encoding, select_by, screening)


def _plan(
    settings: Evaluation,
    encoding: Encoding,
    sets: Sequence[PreparedSet],
    measures: Sequence[Any],
    devices: Sequence[jax.Device],
) -> EvalPlan:
    search = settings.search
    encoder = encoding.build(fastest(devices[0]))
    batch_tokens = settings.batch_tokens or default_batch_tokens(devices[0])
    return EvalPlan(
        abstract_params=held(encoder, settings.model),
        query_tower=Tower(encoder.encode_queries, devices, batch_tokens),
        passage_tower=Tower(encoder.encode_passages, devices, batch_tokens),
        groups=_groups(sets),
        devices=tuple(devices),
        params_paths=settings.model.params_paths,
        base=encoding.base,
        similarity=search.similarity,
        index_dtype=search.index_dtype,
        depth=search.depth,
        measures=tuple(measures),
    )


def _groups(sets: Sequence[PreparedSet]) -> tuple[CorpusGroup, ...]:
    """One for each corpus, so that it is encoded once for all its sets."""
    corpora = {one.corpus.digest: one.corpus for one in sets}
    return tuple(
        CorpusGroup(corpus, tuple(one.judged for one in sets if one.corpus.digest == digest))
        for digest, corpus in corpora.items()
    )


def _check_sample(sample: PreparedSet, whole: PreparedSet) -> None:
    """Raises UserError unless the sample is the smaller."""
    if sample.corpus.count >= whole.corpus.count:
        raise UserError(
            f"`confirm`: {sample.judged.name} has {sample.corpus.count:,} passages and"
            f" {whole.judged.name} {whole.corpus.count:,}: name the sample by the first"
            " `dataset`, and the whole by the second"
        )


def _check_source(sample: DatasetFiles, whole: DatasetFiles, *, digest: str) -> None:
    """Raises UserError if the sample's manifest names another corpus than this digest's."""
    source = manifest.drawn_from(sample.corpus)
    if source not in (None, digest):
        raise UserError(
            f"`confirm`: by its manifest {sample.name} ({sample.corpus.parent}) was drawn from"
            f" another corpus than {whole.corpus} is now: sample that anew"
        )


def _screening(select_by: SelectBy, plan: EvalPlan) -> Screening:
    """The first set screens for the second.

    Raises:
      UserError: it is not the second that decides.
    """
    sample, whole = plan.sets
    if select_by.dataset != whole.name:
        raise UserError(
            f"`select_by={select_by.dataset}:{select_by.measure}`: with `confirm` the second"
            f" `dataset` decides: write `select_by={whole.name}:{select_by.measure}`"
        )
    by_sample = replace(select_by, dataset=sample.name, series=sample.series)
    return Screening(by_sample, select_by)


def _select_by(text: str | None, plan: EvalPlan, usual: EvalSet) -> SelectBy:
    """What `NAME:MEASURE` names; by default the usual set and its first measure."""
    name, _, measure = (text or f"{usual.name}:{plan.measures[0]}").partition(":")
    series = {judged.name: judged.series for judged in plan.sets}
    measures = {str(one): one for one in plan.measures}
    if name not in series or measure not in measures:
        raise UserError(
            f"`select_by={text}` must be NAME:MEASURE, a name of `dataset`"
            f" ({', '.join(series)}) and one of `measures` ({', '.join(measures)})"
        )
    lower_is_better = measuring.lower_is_better(measures[measure])
    return SelectBy(name, series[name], measure, lower_is_better)
