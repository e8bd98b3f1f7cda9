"""Prepares what every checkpoint is evaluated on, and what decides which is best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxval.config import Evaluation
from jaxval.corpus import manifest
from jaxval.corpus.datasets import QuerySet, load_queries
from jaxval.encoders.attention import fastest
from jaxval.encoders.folder import ModelFolder
from jaxval.errors import UserError
from jaxval.evaluation.encode import Tower, default_batch_tokens
from jaxval.evaluation.encoding import Encoding, param_specs, read_encoding
from jaxval.evaluation.plan import CorpusGroup, EvalPlan, EvalSet
from jaxval.evaluation.sets import PreparedSet, prepare_set
from jaxval.metrics import measures as measuring
from jaxval.metrics.screening import Screening
from jaxval.records import Progress, SelectBy


@dataclass(frozen=True)
class Inputs:
    """What an evaluation reads before it tokenizes.

    Attributes:
      queries: The queries and judgments of each set, in the order of `dataset`.
      encoding: The encoder, and how texts become tokens.
    """

    queries: tuple[QuerySet, ...]
    encoding: Encoding


@dataclass(frozen=True)
class Prepared:
    """An evaluation plan, with all that was read for it.

    Attributes:
      plan: What every checkpoint is evaluated on.
      sets: The sets of the plan, in the order of `dataset`.
      encoding: The encoder, and how texts become tokens.
      select_by: What decides which checkpoint is best.
      screening: What decides which checkpoints are evaluated on the whole corpus. None
        evaluates all of them.
    """

    plan: EvalPlan
    sets: tuple[PreparedSet, ...]
    encoding: Encoding
    select_by: SelectBy
    screening: Screening | None = None

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings of each series, by the digest of the series."""
        return {prepared.eval_set.series: prepared.settings for prepared in self.sets}

    @property
    def folder(self) -> ModelFolder | None:
        """The model folder. None if the encoder is not built from one."""
        return self.encoding.folder


def read(settings: Evaluation) -> Inputs:
    """Reads the queries, the judgments and the encoder's description.

    Raises:
      UserError: The settings or the data are wrong.
    """
    queries = tuple(load_queries(files) for files in settings.datasets)
    return Inputs(queries, read_encoding(settings))


def prepare(
    settings: Evaluation,
    open_devices: Callable[[], Sequence[jax.Device]],
    progress: Progress,
    inputs: Inputs | None = None,
) -> Prepared:
    """Prepares the evaluation of checkpoints: reads, tokenizes and builds the plan.

    Args:
      settings: How each checkpoint is evaluated.
      open_devices: Opens the devices. Called last, when everything else is found to be right.
      progress: Shows the tokenization.
      inputs: What `read` returned for these settings. None reads it.

    Raises:
      UserError: The settings or the data are wrong.
    """
    measures = measuring.parse(settings.search.measures, settings.search.depth)
    inputs = inputs or read(settings)
    sets = tuple(
        prepare_set(files, queries, settings, inputs.encoding, measures, progress)
        for files, queries in zip(settings.datasets, inputs.queries, strict=True)
    )
    if settings.confirm:
        _check_sample(*sets)
        _check_source(*sets)
    plan = _plan(settings, inputs.encoding, sets, measures, open_devices())
    default_set = plan.sets[-1 if settings.confirm else 0]
    select_by = _select_by(settings.select_by, plan, default_set)
    screening = _screening(select_by, plan) if settings.confirm else None
    return Prepared(plan, sets, inputs.encoding, select_by, screening)


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
        abstract_params=param_specs(encoder, settings.model),
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
    """Groups the sets by corpus, so that each corpus is encoded once for all its sets."""
    corpora = {prepared.corpus.digest: prepared.corpus for prepared in sets}

    def members(digest: str) -> tuple[EvalSet, ...]:
        return tuple(prepared.eval_set for prepared in sets if prepared.corpus.digest == digest)

    return tuple(CorpusGroup(corpus, members(digest)) for digest, corpus in corpora.items())


def _check_sample(sample: PreparedSet, whole: PreparedSet) -> None:
    """Raises UserError unless the sample has fewer passages than the whole set."""
    if sample.corpus.count >= whole.corpus.count:
        raise UserError(
            f"`confirm`: {sample.files.name} has {sample.corpus.count:,} passages and"
            f" {whole.files.name} {whole.corpus.count:,}: name the sample in the first"
            " `dataset` and the whole set in the second"
        )


def _check_source(sample: PreparedSet, whole: PreparedSet) -> None:
    """Raises UserError if the sample's manifest names another corpus than the whole set's."""
    source = manifest.drawn_from(sample.files.corpus)
    if source not in (None, whole.settings["corpus"]):
        raise UserError(
            f"`confirm`: the manifest of {sample.files.name} ({sample.files.corpus.parent})"
            f" names another corpus than {whole.files.corpus}: draw a new sample from it"
        )


def _screening(select_by: SelectBy, plan: EvalPlan) -> Screening:
    """Returns the screening by the first set for the second.

    Raises:
      UserError: `select_by` names another set than the second.
    """
    sample, whole = plan.sets
    if select_by.dataset != whole.name:
        raise UserError(
            f"`select_by={select_by.dataset}:{select_by.measure}`: with `confirm` the second"
            f" `dataset` decides: set `select_by={whole.name}:{select_by.measure}`"
        )
    by_sample = replace(select_by, dataset=sample.name, series=sample.series)
    return Screening(by_sample, select_by)


def _select_by(text: str | None, plan: EvalPlan, default_set: EvalSet) -> SelectBy:
    """Returns what decides which checkpoint is best.

    Args:
      text: `NAME:MEASURE`. None takes the default set and the first measure.
      plan: The sets and the measures.
      default_set: The set if `text` is None.

    Raises:
      UserError: There is no such set or measure.
    """
    name, _, measure = (text or f"{default_set.name}:{plan.measures[0]}").partition(":")
    series = {eval_set.name: eval_set.series for eval_set in plan.sets}
    measures = {str(measure): measure for measure in plan.measures}
    if name not in series or measure not in measures:
        raise UserError(
            f"`select_by={text}`: write NAME:MEASURE, with the name of a `dataset`"
            f" ({', '.join(series)}) and one of `measures` ({', '.join(measures)})"
        )
    lower_is_better = measuring.lower_is_better(measures[measure])
    return SelectBy(name, series[name], measure, lower_is_better)
