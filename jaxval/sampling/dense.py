"""A checkpoint's own ranking of the corpus, by one full validation: a run to sample by."""

from __future__ import annotations

from dataclasses import replace

from jaxval.checkpoints.commit import committed
from jaxval.checkpoints.restore import Restored
from jaxval.corpus.runs import Candidates
from jaxval.corpus.token_store import TokenStore
from jaxval.errors import UnreadableError, UserError
from jaxval.evaluation import validate
from jaxval.evaluation.plan import EvalPlan
from jaxval.records import Checkpoint, Hits, Progress


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
    (outcome,) = validate.validate(checkpoint, restored, plan, {judged.series}, progress)
    return dict(zip(judged.query_ids, _ids(outcome.hits, outcome.corpus), strict=True))


def _ids(hits: Hits, corpus: TokenStore) -> list[tuple[str, ...]]:
    return [tuple(corpus.ids(rows[rows >= 0])) for rows in hits.rows]
