"""A checkpoint's own ranking of the corpus, by one full validation: a run to sample by."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxval.atomic import make_partial
from jaxval.checkpoints.commit import committed
from jaxval.checkpoints.restore import Restored
from jaxval.config import Evaluation
from jaxval.corpus.runs import Candidates
from jaxval.corpus.token_store import TokenStore
from jaxval.errors import UnreadableError, UserError
from jaxval.evaluation import validate
from jaxval.evaluation.encoding import read_encoding
from jaxval.evaluation.plan import EvalPlan
from jaxval.evaluation.prepare import prepare
from jaxval.evaluation.series import ranking_settings
from jaxval.records import Checkpoint, Hits, Progress


@dataclass(frozen=True)
class Ranker:
    """Checkpoint whose ranking of the corpus a sample takes.

    Attributes:
      origin: the checkpoint and how it encodes, for the sample's manifest.
      rank: depth -> the passages ranked highest for each query. Encodes the whole corpus.
    """

    origin: Mapping[str, Any]
    rank: Callable[[int], Candidates]


def open_ranker(
    evaluation: Evaluation,
    checkpoint_dir: str,
    step: int,
    output_dir: Path,
    open_devices: Callable[[], Sequence[jax.Device]],
    progress: Progress,
) -> Ranker:
    """Finds the checkpoint of a step and describes how it ranks. Encodes nothing yet.

    Args:
      evaluation: how the checkpoint is validated. Without `token_dir`, tokenized texts are
        kept in a temporary folder beside `output_dir`.
      checkpoint_dir: the trainer's directory.
      step: the checkpoint's step.
      output_dir: the sample's folder.
      open_devices: called when the ranking begins.
      progress: shows tokenizing and encoding.

    Raises:
      UserError: there is no such checkpoint, or the settings are at fault.
    """
    if evaluation.search.rerank:
        raise UserError("`rerank` ranks no corpus: leave it out, dense:depth=N needs all of it")
    checkpoint = pick(checkpoint_dir, step)
    settings = ranking_settings(evaluation, read_encoding(evaluation))

    def rank_corpus(depth: int) -> Candidates:
        with _token_dir(evaluation.texts.token_dir, output_dir) as token_dir:
            texts = replace(evaluation.texts, token_dir=token_dir)
            prepared = prepare(replace(evaluation, texts=texts), open_devices, progress)
            return rank(checkpoint, prepared.plan, depth, progress)

    identity = {"checkpoint": checkpoint.name, "commit_ns": checkpoint.commit_ns}
    return Ranker({**identity, **settings}, rank_corpus)


@contextlib.contextmanager
def _token_dir(token_dir: Path | None, output_dir: Path) -> Iterator[Path]:
    """Yields `token_dir`, or else a temporary folder beside `output_dir`.

    The temporary folder's name is one that `publish` sweeps if a killed process leaves it.
    """
    if token_dir is not None:
        yield token_dir
        return
    temporary = make_partial(output_dir)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def pick(checkpoint_dir: str, step: int) -> Checkpoint:
    """The committed checkpoint of a step.

    Raises:
      UserError: there is none.
    """
    found = committed(checkpoint_dir)
    for checkpoint in found:
        if checkpoint.step == step:
            return checkpoint
    there = ", ".join(str(checkpoint.step) for checkpoint in found) or "none"
    raise UserError(f"`dense_step={step}` is not in {checkpoint_dir} (committed are: {there})")


def load(checkpoint: Checkpoint, plan: EvalPlan) -> Restored:
    """The encoder's parameters, where there is no later start that could read them.

    Raises:
      MismatchError: they do not fit the encoder.
      CheckpointError: they cannot be read.
    """
    try:
        return validate.load(checkpoint, plan)
    except OSError as error:
        raise UnreadableError(f"{checkpoint.path} cannot be read: {error}") from error


def rank(checkpoint: Checkpoint, plan: EvalPlan, depth: int, progress: Progress) -> Candidates:
    """The `depth` passages that a checkpoint ranks highest for each query of the first set.

    Raises:
      MismatchError, CheckpointError: it cannot be validated.
      UserError: the device has too little memory.
    """
    plan = replace(plan, depth=depth, measures=())
    (judged, *_) = plan.sets
    restored = load(checkpoint, plan)
    label = f"step {checkpoint.step}"
    (outcome,) = validate.validate(label, restored, plan, {judged.series}, progress)
    return dict(zip(judged.query_ids, _ids(outcome.hits, outcome.corpus), strict=True))


def _ids(hits: Hits, corpus: TokenStore) -> list[tuple[str, ...]]:
    return [tuple(corpus.ids(rows[rows >= 0])) for rows in hits.rows]
