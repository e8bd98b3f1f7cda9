"""Config -> a report of what a validation will do, and of what looks wrong.

Nothing is validated: no lock is taken, no checkpoint pinned, no row or signal written. What
is kept is what a validation would make too, and finds by its digest: tokenized texts and
compiled programs.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np

from jaxval.check import findings, footprint, inspect_set, timing
from jaxval.check.check_report import Leg, Report, SetReport, Times
from jaxval.check.findings import Finding
from jaxval.check.newest import Newest, newest
from jaxval.check.timing import Paces
from jaxval.checkpoints.restore import Restored
from jaxval.config import Config
from jaxval.encoders import folder
from jaxval.encoders.folder import ModelFolder
from jaxval.evaluation.memory import place_towers, within_memory
from jaxval.evaluation.plan import CorpusGroup, EvalPlan, TowerParams
from jaxval.evaluation.prepare import Prepared, prepare
from jaxval.records import Progress


def run(
    config: Config, devices: Callable[[], Sequence[jax.Device]], progress: Progress
) -> Report:
    """Looks at everything that a validation needs.

    Args:
      config: of the run that is to be.
      devices: opened when all else has been found right.
      progress: shows what takes long.

    Raises:
      UserError: the settings or the data are at fault, so that nothing can be looked at.
    """
    busy = timing.busy()
    prepared = prepare(config.evaluation, devices, progress)
    plan = prepared.plan
    asked = plan.passage_tower.batch_tokens
    found = newest(config.watching.checkpoint_dir, plan)
    params, placing = _placed(found, plan)
    paces = _paces(plan, params, progress)  # first: batches may have to be halved
    model = (
        folder.read(config.evaluation.model.folder) if config.evaluation.model.folder else None
    )
    sets, doubtful = _sets(config, prepared, found, params, progress)
    device = footprint.on_device(plan, params, paces.passage)
    host = footprint.on_host(plan, device.params, config.watching.host_checkpoints, paces.dim)
    doubtful += [
        *findings.memory(device, host),
        *findings.halved(asked, plan.passage_tower.batch_tokens),
    ]
    return Report(
        newest=found,
        plan=plan,
        select_by=prepared.select_by,
        sets=sets,
        times=replace(_times(config, plan, found, placing, paces), busy=busy),
        device=device,
        host=host,
        kept=_kept(config),
        doubts=[*_of_settings(config, prepared, found, model), *doubtful],
    )


def _placed(found: Newest, plan: EvalPlan) -> tuple[TowerParams, float]:
    """The parameters on the devices, and the seconds that it took."""
    start = time.perf_counter()
    params = place_towers(found.restored or _zeros(plan), plan)
    return params, time.perf_counter() - start


def _zeros(plan: EvalPlan) -> Restored:
    """What batches are timed with where there is no checkpoint."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), plan.abstract_params)
    return Restored(zeros, found_at="")


def _paces(plan: EvalPlan, params: TowerParams, progress: Progress) -> Paces:
    return within_memory(
        plan, lambda: timing.paces(plan, params, lambda n: progress("timing batches", n))
    )


def _sets(
    config: Config,
    prepared: Prepared,
    found: Newest,
    params: TowerParams,
    progress: Progress,
) -> tuple[list[SetReport], list[Finding]]:
    """Each set of the bench, and what is doubtful about them."""
    plan = prepared.plan
    seen: list[SetReport] = []
    doubtful: list[Finding] = []
    files = {one.name: one for one in config.evaluation.datasets}
    for group in plan.groups:
        for judged in group.sets:
            one = inspect_set.texts(prepared, judged, group.corpus, files[judged.name])
            doubtful += inspect_set.cut(one)
            if found.restored is not None:
                encode = functools.partial(
                    inspect_set.encoded, one, plan, judged, params, progress
                )
                one, more = within_memory(plan, encode)
                doubtful += more
            seen.append(one)
    return seen, doubtful


def _of_settings(
    config: Config, prepared: Prepared, found: Newest, model: ModelFolder | None
) -> list[Finding]:
    """What is doubtful about the checkpoint and the flags."""
    encoding = prepared.encoding
    named, watching = config.evaluation.model.folder or "", config.watching
    return [
        *findings.unread(found),
        *(findings.towers(found.restored) if found.restored else ()),
        *findings.prefixes(model, named, encoding.queries.prefix, encoding.passages.prefix),
        *findings.normalization(
            model, config.evaluation.model.normalize, prepared.plan.similarity
        ),
        *findings.pins(watching.checkpoint_dir, watching.pin_dir),
    ]


def _times(
    config: Config, plan: EvalPlan, found: Newest, placing: float, paces: Paces
) -> Times:
    restored = found.restored
    return Times(
        restore=restored.seconds + placing if restored else None,
        legs=[_leg(plan, group, paces) for group in plan.groups],
        first=paces.first,
        shapes=len(paces.query.shapes) + len(paces.passage.shapes),
        screened=config.evaluation.confirm is not None,
    )


def _leg(plan: EvalPlan, group: CorpusGroup, paces: Paces) -> Leg:
    queries = [judged.queries for judged in group.sets]
    passages = group.corpus
    reranked = any(judged.candidates for judged in group.sets)
    count = sum(store.count for store in queries)
    return Leg(
        names=tuple(judged.name for judged in group.sets),
        queries=sum(paces.query.seconds(plan.query_tower.shapes(store)) for store in queries),
        passages=paces.passage.seconds(plan.passage_tower.shapes(passages)),
        search=0.0
        if reranked
        else timing.search_seconds(plan, count, passages.count, paces.dim),
    )


def _kept(config: Config) -> tuple[str, ...]:
    """What a run finds done."""
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    programs = [f"compiled programs in {compiled}"] if compiled else []
    return (f"tokenized texts in {config.evaluation.texts.token_dir}", *programs)
