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

from jaxval.check import doubts, look, memory, pace
from jaxval.check.doubts import Doubt
from jaxval.check.newest import Newest, newest
from jaxval.check.pace import Paces
from jaxval.check.report import Leg, Report, Seen, Times
from jaxval.checkpoints.restore import Restored
from jaxval.config import Config
from jaxval.encoders import folder
from jaxval.encoders.folder import ModelFolder
from jaxval.prepare.bench import Prepared, prepare
from jaxval.records import Progress
from jaxval.validate import Bench, Round, TowerParams, place_towers, within_memory


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
    busy = pace.busy()
    prepared = prepare(config, devices, progress)
    bench = prepared.bench
    asked = bench.passage_tower.batch_tokens
    found = newest(config.watching.checkpoint_dir, bench)
    params, placing = _placed(found, bench)
    paces = _paces(bench, params, progress)  # first: batches may have to be halved
    model = folder.read(config.model.folder) if config.model.folder else None
    sets, doubtful = _sets(config, prepared, found, params, progress)
    device = memory.on_device(bench, params, paces.passage)
    host = memory.on_host(bench, device.params, config.watching.host_checkpoints, paces.dim)
    doubtful += [
        *doubts.memory(device, host),
        *doubts.halved(asked, bench.passage_tower.batch_tokens),
    ]
    return Report(
        newest=found,
        bench=bench,
        select_by=prepared.select_by,
        sets=sets,
        times=replace(_times(config, bench, found, placing, paces), busy=busy),
        device=device,
        host=host,
        kept=_kept(config),
        doubts=[*_of_settings(config, prepared, found, model), *doubtful],
    )


def _placed(found: Newest, bench: Bench) -> tuple[TowerParams, float]:
    """The parameters on the devices, and the seconds that it took."""
    start = time.perf_counter()
    params = place_towers(found.restored or _zeros(bench), bench)
    return params, time.perf_counter() - start


def _zeros(bench: Bench) -> Restored:
    """What batches are timed with where there is no checkpoint."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), bench.abstract_params)
    return Restored(zeros, found_at="")


def _paces(bench: Bench, params: TowerParams, progress: Progress) -> Paces:
    return within_memory(
        bench, lambda: pace.paces(bench, params, lambda n: progress("timing batches", n))
    )


def _sets(
    config: Config,
    prepared: Prepared,
    found: Newest,
    params: TowerParams,
    progress: Progress,
) -> tuple[list[Seen], list[Doubt]]:
    """Each set of the bench, and what is doubtful about them."""
    bench = prepared.bench
    seen: list[Seen] = []
    doubtful: list[Doubt] = []
    files = {one.name: one for one in config.datasets}
    for round_ in bench.rounds:
        for judged in round_.sets:
            one = look.texts(prepared, judged, round_.corpus, files[judged.name])
            doubtful += look.cut(one)
            if found.restored is not None:
                encode = functools.partial(look.encoded, one, bench, judged, params, progress)
                one, more = within_memory(bench, encode)
                doubtful += more
            seen.append(one)
    return seen, doubtful


def _of_settings(
    config: Config, prepared: Prepared, found: Newest, model: ModelFolder | None
) -> list[Doubt]:
    """What is doubtful about the checkpoint and the flags."""
    encoding = prepared.encoding
    named, watching = config.model.folder or "", config.watching
    return [
        *doubts.unread(found),
        *(doubts.towers(found.restored) if found.restored else ()),
        *doubts.prefixes(model, named, encoding.queries.prefix, encoding.passages.prefix),
        *doubts.normalization(model, config.model.normalize, prepared.bench.similarity),
        *doubts.pins(watching.checkpoint_dir, watching.pin_dir),
    ]


def _times(config: Config, bench: Bench, found: Newest, placing: float, paces: Paces) -> Times:
    restored = found.restored
    return Times(
        restore=restored.seconds + placing if restored else None,
        legs=[_leg(bench, round_, paces) for round_ in bench.rounds],
        first=paces.first,
        shapes=len(paces.query.shapes) + len(paces.passage.shapes),
        screened=config.confirm is not None,
    )


def _leg(bench: Bench, round_: Round, paces: Paces) -> Leg:
    queries = [judged.queries for judged in round_.sets]
    passages = round_.corpus
    reranked = any(judged.candidates for judged in round_.sets)
    count = sum(store.count for store in queries)
    return Leg(
        names=tuple(judged.name for judged in round_.sets),
        queries=sum(paces.query.seconds(bench.query_tower.shapes(store)) for store in queries),
        passages=paces.passage.seconds(bench.passage_tower.shapes(passages)),
        search=0.0
        if reranked
        else pace.search_seconds(bench, count, passages.count, paces.dim),
    )


def _kept(config: Config) -> tuple[str, ...]:
    """What a run finds done."""
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    programs = [f"compiled programs in {compiled}"] if compiled else []
    return (f"tokenized texts in {config.texts.token_dir}", *programs)
