"""Inspects what a validation will need, and reports what it will do and what looks wrong.

Nothing is validated: no lock is taken, no checkpoint is pinned, and no row or signal is
written. Tokenized texts and compiled programs are kept, and a later run uses them.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxval.check import findings, footprint, inspect_set, timing
from jaxval.check.check_report import CheckpointTime, CorpusTime, Report, SetReport
from jaxval.check.findings import Finding
from jaxval.check.newest import NewestCheckpoint, find_newest
from jaxval.check.timing import EncodingTiming
from jaxval.checkpoints.restore import Restored
from jaxval.config import Config
from jaxval.evaluation.memory import place_towers, within_memory
from jaxval.evaluation.plan import CorpusGroup, EvalPlan, TowerParams
from jaxval.evaluation.prepare import Prepared, prepare
from jaxval.records import Progress


def run(
    config: Config, devices: Callable[[], Sequence[jax.Device]], progress: Progress
) -> Report:
    """Inspects everything that a validation needs.

    Args:
      config: Settings of the run to come.
      devices: Opens the devices; called when the settings and the data are valid.
      progress: Shows long work.

    Raises:
      UserError: The settings or the data are invalid, so nothing can be inspected.
    """
    load = timing.high_load()  # before this process adds to it
    prepared = prepare(config.evaluation, devices, progress)
    plan = prepared.plan
    batch_tokens = plan.passage_tower.batch_tokens
    newest = find_newest(config.watching.checkpoint_dir, plan)
    params, placing = _place(newest, plan)
    encoding = _time_encoding(plan, params, progress)  # first: it may halve the batches
    sets, problems = _inspect_sets(prepared, newest, params, progress)
    device = footprint.device_memory(plan, params, encoding.passage)
    host = footprint.host_memory(
        plan, device.params, config.watching.host_checkpoints, encoding.dim
    )
    return Report(
        newest=newest,
        plan=plan,
        select_by=prepared.select_by,
        sets=sets,
        times=_checkpoint_time(config, plan, newest, placing, encoding, load),
        device=device,
        host=host,
        cached=_cached(config),
        findings=[
            *_inspect_settings(config, prepared, newest),
            *problems,
            *findings.too_little_memory(device, host),
            *findings.reduced_batch(batch_tokens, plan.passage_tower.batch_tokens),
        ],
    )


def _place(newest: NewestCheckpoint, plan: EvalPlan) -> tuple[TowerParams, float]:
    """Returns the parameters on the devices, and the seconds that copying them took."""
    start = time.perf_counter()
    params = place_towers(newest.restored or _zeros(plan), plan)
    return params, time.perf_counter() - start


def _zeros(plan: EvalPlan) -> Restored:
    """Returns parameters to time batches with, if there is no checkpoint."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), plan.abstract_params)
    return Restored(zeros, found_at="")


def _time_encoding(plan: EvalPlan, params: TowerParams, progress: Progress) -> EncodingTiming:
    bar = functools.partial(progress, "timing batches")
    return within_memory(plan, lambda: timing.time_encoding(plan, params, bar))


def _inspect_sets(
    prepared: Prepared,
    newest: NewestCheckpoint,
    params: TowerParams,
    progress: Progress,
) -> tuple[list[SetReport], list[Finding]]:
    """Returns a report of each set, and what looks wrong about them."""
    plan = prepared.plan
    reports: list[SetReport] = []
    problems: list[Finding] = []
    queries = {
        prepared_set.eval_set.name: prepared_set.queries for prepared_set in prepared.sets
    }
    for group in plan.groups:
        for eval_set in group.sets:
            report = inspect_set.inspect_texts(
                plan, prepared.encoding, eval_set, group.corpus, queries[eval_set.name]
            )
            problems += inspect_set.truncation_findings(report)
            if newest.restored is not None:
                inspect_vectors = functools.partial(
                    inspect_set.inspect_vectors, report, plan, eval_set, params, progress
                )
                report, more = within_memory(plan, inspect_vectors)
                problems += more
            reports.append(report)
    return reports, problems


def _inspect_settings(
    config: Config, prepared: Prepared, newest: NewestCheckpoint
) -> list[Finding]:
    """Returns what looks wrong about the checkpoint and the settings."""
    texts, watching, model = prepared.encoding, config.watching, prepared.folder
    name = config.evaluation.model.folder or ""
    similarity, pooling = prepared.plan.similarity, config.evaluation.model.pooling
    return [
        *findings.unreadable(newest),
        *(findings.identical_towers(newest.restored) if newest.restored else ()),
        *findings.missing_prefixes(model, name, texts.queries.prefix, texts.passages.prefix),
        *findings.missing_closing_token(model, pooling, texts.tokenizer),
        *findings.small_embedding(prepared.plan.abstract_params, texts.tokenizer),
        *findings.missing_normalization(model, config.evaluation.model.normalize, similarity),
        *findings.impossible_pins(watching.checkpoint_dir, watching.pin_dir),
    ]


def _checkpoint_time(
    config: Config,
    plan: EvalPlan,
    newest: NewestCheckpoint,
    placing: float,
    encoding: EncodingTiming,
    load: float | None,
) -> CheckpointTime:
    restored = newest.restored
    return CheckpointTime(
        restore=restored.seconds + placing if restored else None,
        corpora=[_corpus_time(plan, group, encoding) for group in plan.groups],
        startup=encoding.startup,
        programs=encoding.programs,
        screened=config.evaluation.confirm is not None,
        load=load,
    )


def _corpus_time(plan: EvalPlan, group: CorpusGroup, encoding: EncodingTiming) -> CorpusTime:
    queries = [eval_set.queries for eval_set in group.sets]
    passages = group.corpus
    reranked = any(eval_set.candidates for eval_set in group.sets)
    count = sum(store.count for store in queries)
    return CorpusTime(
        datasets=tuple(eval_set.name for eval_set in group.sets),
        queries=sum(
            encoding.query.seconds(plan.query_tower.shapes(store)) for store in queries
        ),
        passages=encoding.passage.seconds(plan.passage_tower.shapes(passages)),
        search=0.0
        if reranked
        else timing.search_seconds(plan, count, passages.count, encoding.dim),
    )


def _cached(config: Config) -> tuple[str, ...]:
    """Returns what a run will use again."""
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    programs = [f"compiled programs in {compiled}"] if compiled else []
    return (f"tokenized texts in {config.evaluation.texts.token_dir}", *programs)
