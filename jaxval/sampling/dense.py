"""Ranks the corpus by a checkpoint, to sample from that ranking."""

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
from jaxval.corpus.datasets import QuerySet
from jaxval.corpus.runs import Candidates
from jaxval.corpus.token_store import TokenStore
from jaxval.errors import UnreadableError, UserError
from jaxval.evaluation import validate
from jaxval.evaluation.plan import EvalPlan
from jaxval.evaluation.prepare import prepare, read
from jaxval.evaluation.series import ranking_settings
from jaxval.records import Checkpoint, Hits, Progress


@dataclass(frozen=True)
class Ranker:
    """The checkpoint from whose ranking a sample is taken.

    Attributes:
      queries: The judged queries of the validation set.
      origin: The checkpoint and how it encodes, for the sample's manifest.
      rank: Depth -> the highest ranked passages of each query. Encodes the whole corpus.
    """

    queries: QuerySet
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
    """Finds the checkpoint of a step, and reads what ranking needs. Encodes nothing yet.

    Args:
      evaluation: How the checkpoint is evaluated. Without `token_dir`, tokenized texts are
        kept in a temporary folder beside `output_dir`.
      checkpoint_dir: The trainer's directory.
      step: The checkpoint's step.
      output_dir: The sample's folder.
      open_devices: Opens the devices. Called when the ranking begins.
      progress: Shows the tokenization and the encoding.

    Raises:
      UserError: There is no such checkpoint, or the settings or the queries are wrong.
    """
    if evaluation.search.rerank:
        raise UserError(
            "`rerank` does not rank the whole corpus, which dense:depth=N needs: remove it"
        )
    checkpoint = pick(checkpoint_dir, step)
    inputs = read(evaluation)
    settings = ranking_settings(evaluation, inputs.encoding)

    def rank_corpus(depth: int) -> Candidates:
        with _token_dir(evaluation.texts.token_dir, output_dir) as token_dir:
            texts = replace(evaluation.texts, token_dir=token_dir)
            prepared = prepare(replace(evaluation, texts=texts), open_devices, progress, inputs)
            return rank(checkpoint, prepared.plan, depth, progress)

    identity = {"checkpoint": checkpoint.name, "commit_ns": checkpoint.commit_ns}
    return Ranker(inputs.queries[0], {**identity, **settings}, rank_corpus)


@contextlib.contextmanager
def _token_dir(token_dir: Path | None, output_dir: Path) -> Iterator[Path]:
    """Yields `token_dir`, or else a temporary folder beside `output_dir`.

    If a killed process leaves the temporary folder, `publish` removes it by its name.
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
    """Returns the committed checkpoint of a step.

    Raises:
      UserError: There is none.
    """
    checkpoints = committed(checkpoint_dir)
    for checkpoint in checkpoints:
        if checkpoint.step == step:
            return checkpoint
    steps = ", ".join(str(checkpoint.step) for checkpoint in checkpoints) or "none"
    raise UserError(
        f"`dense_step={step}` is not in {checkpoint_dir} (committed steps: {steps}):"
        " name one of them"
    )


def load(checkpoint: Checkpoint, plan: EvalPlan) -> Restored:
    """Restores the encoder's parameters; an error of the file system is final.

    Raises:
      MismatchError: They do not fit the encoder.
      CheckpointError: They cannot be read.
    """
    try:
        return validate.load(checkpoint, plan)
    except OSError as error:
        raise UnreadableError(f"{checkpoint.path} cannot be read: {error}") from error


def rank(checkpoint: Checkpoint, plan: EvalPlan, depth: int, progress: Progress) -> Candidates:
    """Returns the `depth` highest ranked passages of each query of the plan's first set.

    Args:
      checkpoint: The checkpoint that ranks.
      plan: How it is evaluated; its depth and measures are not used.
      depth: Number of passages of each query.
      progress: Shows the encoding.

    Raises:
      MismatchError: The checkpoint does not fit the encoder.
      CheckpointError: The checkpoint cannot be read.
      UserError: The device has too little memory.
    """
    plan = replace(plan, depth=depth, measures=())
    eval_set = plan.sets[0]
    restored = load(checkpoint, plan)
    label = f"step {checkpoint.step}"
    (result,) = validate.validate(label, restored, plan, {eval_set.series}, progress)
    return dict(zip(eval_set.query_ids, _ids(result.hits, result.corpus), strict=True))


def _ids(hits: Hits, corpus: TokenStore) -> list[tuple[str, ...]]:
    return [tuple(corpus.ids(rows[rows >= 0])) for rows in hits.rows]
